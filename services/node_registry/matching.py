"""Which nodes match a query, and why the others do not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from libs.common.contracts.node_registry import EngineState, NodeQuery, NodeState
from libs.common.errors import Malformed
from libs.hardware.matching import Lack, clauses, free_ram_mb, free_vram_mb, named
from libs.hardware.tiers import ORDER
from services.node_registry.model import Node

Clause = Callable[[Node], str | Lack | None]
"""Why a node does not satisfy one demand; None when it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query that has been read: what it demands, one clause for each demand, the cheap ones first."""

    clauses: tuple[Clause, ...]
    order: "Order"


@dataclass(frozen=True, slots=True)
class Order:
    """How found nodes are ordered; what is not known comes last."""

    key: Callable[[Node], float | None] | None
    downwards: bool

    @property
    def by_id(self) -> bool:
        return self.key is None and not self.downwards

    def sorted(self, nodes: Sequence[Node]) -> list[Node]:
        by_id = sorted(nodes, key=lambda node: node.node_id, reverse=self.key is None and self.downwards)
        key = self.key
        if key is None:
            return by_id
        valued = [(key(node), node) for node in by_id]
        known = [(value, node) for value, node in valued if value is not None]
        unknown = [node for value, node in valued if value is None]
        return [node for _, node in sorted(known, key=lambda pair: pair[0], reverse=self.downwards)] + unknown


def read(query: NodeQuery) -> Wanted:
    """Raises `Malformed`, naming what is allowed, for a name that does not exist."""
    order = query.sort.strip().lower()
    word = order.removeprefix("-")
    if word not in _ORDERS:
        raise Malformed(f"sort: {query.sort!r} is none of {', '.join(_ORDERS)}", field="sort", allowed=list(_ORDERS))
    if query.after is not None and order != "node_id":
        raise Malformed("after: pages are told only in the order of node_id, without `sort`", field="after")
    return Wanted(
        clauses=(*_about_node(query), *clauses(query)),
        order=Order(_ORDERS[word], order.startswith("-")),
    )


def matches(node: Node, wanted: Wanted) -> bool:
    for clause in wanted.clauses:  # noqa: SIM110  # runs for every node: a generator would take twice as long
        if clause(node) is not None:
            return False
    return True


def refusals(node: Node, wanted: Wanted) -> list[str]:
    """Why this node does not match, one sentence for each clause; none when it does."""
    return [str(reason) for clause in wanted.clauses if (reason := clause(node)) is not None]


def _about_node(query: NodeQuery) -> Iterator[Clause]:
    if query.online_only:
        yield _is_online
    if (states := _states(query.states)) is not None:
        yield lambda node: None if node.life.state in states else f"states: it is {node.life.state}"
    if (draining := query.draining) is not None:
        yield (
            lambda node: (
                None if node.draining is draining else f"draining: it is {'' if node.draining else 'not '}draining"
            )
        )
    if query.model_name is not None:
        yield partial(_has_model, query.model_name)


def _is_online(node: Node) -> str | None:
    if node.life.state is NodeState.ONLINE:
        return None
    return f"online_only: it is {node.life.state} ({node.life.reason})"


def _has_model(name: str, node: Node) -> str | None:
    return None if name in _models(node) else f"model_name: {name} is not loaded and ready there"


def _models(node: Node) -> frozenset[str]:
    engines = node.workload.engines if node.workload is not None else ()
    return frozenset(engine.model_name for engine in engines if engine.state is EngineState.READY)


def _states(names: Sequence[str] | None) -> frozenset[NodeState] | None:
    if names is None:
        return None
    return frozenset(state for name in names if (state := named(NodeState, "states", name)) is not None)


def _most_free_vram(node: Node) -> float | None:
    known = [free_vram_mb(node, gpu) for gpu in node.announced.inventory.gpus]
    return max((free for free in known if free is not None), default=None)


_ORDERS: dict[str, Callable[[Node], float | None] | None] = {
    "node_id": None,
    "tier": lambda node: ORDER.index(node.announced.tier),
    "load_ratio": lambda node: node.beat.load_ratio if node.beat is not None else None,
    "free_ram_mb": free_ram_mb,
    "free_vram_mb": _most_free_vram,
    "free_slots": lambda node: node.workload.free_slots if node.workload is not None else None,
}
