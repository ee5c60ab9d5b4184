"""Which nodes match a query, and why the others do not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter

from libs.common.contracts.node_registry import NodeQuery, NodeState
from libs.common.errors import Malformed
from libs.hardware.matching import Clause, Judgement, Lack, clauses, named
from libs.hardware.tiers import ORDER
from services.node_registry.model import Node

_NodeClause = Judgement[Node]


@dataclass(frozen=True, slots=True)
class Order:
    """How found nodes are ordered; what is not known comes last, and equals by their ids."""

    key: Callable[[Node], float | None] | None
    downwards: bool

    @property
    def by_id(self) -> bool:
        return self.key is None and not self.downwards

    def first(self, nodes: Sequence[Node], count: int) -> list[Node]:
        """The first so many, without putting the others in order."""
        if self.key is None:
            return _by_id(nodes, self.downwards)[:count]
        key, sign = self.key, -1 if self.downwards else 1
        valued = [
            (sign * value, node.pulse.machine.node_id, node) for node in nodes if (value := key(node)) is not None
        ]
        known = [node for _, _, node in nsmallest(count, valued)]
        if len(known) == count:
            return known
        return known + _by_id([node for node in nodes if key(node) is None], False)[: count - len(known)]


def _by_id(nodes: Sequence[Node], downwards: bool) -> list[Node]:
    return sorted(nodes, key=attrgetter("pulse.machine.node_id"), reverse=downwards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query that has been read: what it demands of a node, and of its machine."""

    node: tuple[_NodeClause, ...]
    machine: tuple[Clause, ...]
    order: Order


def read(query: NodeQuery) -> Wanted:
    """Raises `Malformed`, naming what is allowed, for a name that does not exist."""
    order = query.sort.strip().lower()
    word = order.removeprefix("-")
    if word not in _ORDERS:
        raise Malformed(f"sort: {query.sort!r} is none of {', '.join(_ORDERS)}", field="sort", allowed=list(_ORDERS))
    if query.after is not None and order != "node_id":
        raise Malformed("after: pages are told only in the order of node_id, without `sort`", field="after")
    return Wanted(
        node=tuple(_about_node(query)), machine=clauses(query), order=Order(_ORDERS[word], order.startswith("-"))
    )


def matching(nodes: Sequence[Node], wanted: Wanted) -> list[Node]:
    found = list(nodes)
    for judge in [clause.holds for clause in wanted.node]:
        found = [node for node in found if judge(node)]
    for holds in [clause.holds for clause in wanted.machine]:
        found = [node for node in found if holds(node.pulse.machine)]
    return found


def refusals(node: Node, wanted: Wanted) -> list[str]:
    """Why this node does not match, one sentence for each clause; none when it does."""
    lacks = [clause(node) for clause in wanted.node] + [clause(node.pulse.machine) for clause in wanted.machine]
    return [str(lack) for lack in lacks if lack is not None]


def _about_node(query: NodeQuery) -> Iterator[_NodeClause]:
    if query.online_only:
        yield Judgement(
            lambda node: node.life.state is NodeState.ONLINE,
            lambda node: Lack("online_only", f"it is {node.life.state} ({node.life.reason})"),
        )
    if (states := _states(query.states)) is not None:
        yield Judgement(lambda node: node.life.state in states, lambda node: Lack("states", f"it is {node.life.state}"))
    if (draining := query.draining) is not None:
        yield Judgement(
            lambda node: node.draining is draining,
            lambda node: Lack("draining", f"it is {'' if node.draining else 'not '}draining"),
        )
    if (model := query.model_name) is not None:
        yield Judgement(
            lambda node: node.workload is not None and model in node.workload.ready_models,
            lambda _: Lack("model_name", f"{model} is not loaded and ready there"),
        )


def _states(names: Sequence[str] | None) -> tuple[NodeState, ...] | None:
    if names is None:
        return None
    return tuple(state for name in names if (state := named(NodeState, "states", name)) is not None)


_ORDERS: Mapping[str, Callable[[Node], float | None] | None] = {
    "node_id": None,
    "tier": lambda node: ORDER.index(node.pulse.machine.tier),
    "load_ratio": lambda node: node.pulse.load_ratio,
    "free_ram_mb": lambda node: node.pulse.machine.ram_free_mb,
    "free_vram_mb": lambda node: node.pulse.machine.most_free_vram_mb,
    "free_slots": lambda node: node.workload.free_slots if node.workload is not None else None,
}
