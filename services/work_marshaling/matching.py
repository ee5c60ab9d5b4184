"""Which node may run an item, why not another one, and which one is best. The same clauses decide and explain.

What a machine must have is said by `libs.hardware.matching`, with the words and the code of the registry's query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from libs.common.contracts.node_registry import NodeState
from libs.common.contracts.work_marshaling import EXTERNAL
from libs.common.contracts.work_requirements import NO_REQUIREMENTS, Requirements
from libs.hardware.matching import Clause, Lack, at_least, clauses
from services.work_marshaling.model import WorkItem
from services.work_marshaling.nodes import Agent, Node
from services.work_marshaling.slots import Promise

SUSPECTS_TOGETHER = 8
BLACKLISTED = "blacklist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an item asks of a node. Items of equal demand are interchangeable to a node. `needs`: as JSON.

    `tried` are the nodes where an attempt came to nothing: they are left out as long as there is another one. For
    `company` see there.
    """

    work_type: str
    model_name: str | None
    needs: str
    tried: tuple[str, ...]
    company: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A demand that has been read: one clause for each thing that a machine must have, and what it is promised."""

    demand: Demand
    requirements: Requirements
    machine: tuple[Clause, ...]
    memory: Promise | None

    @property
    def external(self) -> bool:
        return self.requirements.node_ids == (EXTERNAL,)


def company(item: WorkItem, poison_nodes: int) -> int:
    """With how many of its kind an item may share a node; 0: with anything.

    An item that was aboard when a node died is a suspect: it shares nodes only with suspects, few at a time, and from
    the last death but one that it may survive it runs alone. So no item is dead by poison that was not alone when its
    last node died, and the worst that a poisonous item can do to another is to have it run alone.
    """
    deaths = item.deaths if item.attempts else 0
    if deaths == 0:
        return 0
    return 1 if deaths >= poison_nodes - 1 else SUSPECTS_TOGETHER


def demand(item: WorkItem, poison_nodes: int) -> Demand:
    asked = item.spec.requirements
    tried = {each.node_id for each in item.attempts if each.counted or each.died} if item.attempts else ()
    return Demand(
        work_type=item.spec.work_type,
        model_name=item.spec.model_name,
        needs=_needs(asked),
        tried=tuple(sorted(tried)),
        company=company(item, poison_nodes),
    )


def wanted(item: WorkItem, poison_nodes: int) -> Wanted:
    return _read(demand(item, poison_nodes), item.spec.requirements)


def wanted_of(work_type: str, model_name: str | None, asked: Requirements) -> Wanted:
    """Of an item that was never tried."""
    return _read(Demand(work_type=work_type, model_name=model_name, needs=_needs(asked), tried=()), asked)


def _read(demand: Demand, asked: Requirements) -> Wanted:
    free = max(asked.min_free_vram_mb or 0, asked.vram_mb or 0) or None
    machine = clauses(asked.model_copy(update={"node_ids": None, "min_free_vram_mb": free}))
    return Wanted(demand, asked, machine, promise(asked))


def promise(asked: Requirements) -> Promise | None:
    """The memory that an item is to be promised."""
    if not asked.ram_mb and not asked.vram_mb:
        return None
    return Promise(ram_mb=asked.ram_mb or 0, vram_mb=asked.vram_mb or 0, gpu_count=asked.gpu_count)


def _needs(asked: Requirements) -> str:
    return "" if asked is NO_REQUIREMENTS else asked.model_dump_json(exclude_defaults=True)


def why_not(asked: Wanted, node: Node) -> Lack | None:
    """The first clause that excludes the node; None when it may run the item as soon as it has a free slot."""
    return next(lacks(asked, node), None)


def lacks(asked: Wanted, node: Node) -> Iterator[Lack]:
    """Every clause that excludes the node, one after another as it is asked for."""
    yield from _named(asked, node)
    if node.agent is None:
        yield Lack("agent", "no agent was heard there", passing=True)
    else:
        yield from _state(node, node.agent)
        yield from _ability(asked.demand, node.agent)
    yield from _machine(asked, node)
    yield from _distrusted(asked.demand, node)


def lasting(found: Sequence[Lack]) -> bool:
    """Whether this node could not run the item however long one waits, as things are."""
    return any(not lack.passing for lack in found)


def _named(asked: Wanted, node: Node) -> Iterator[Lack]:
    names = asked.requirements.node_ids
    if names is not None and node.node_id not in names:
        yield Lack("node_ids", "it is not among them")
    if node.node_id in asked.requirements.avoid_node_ids:
        yield Lack("avoid_node_ids", "the item avoids it")


def _state(node: Node, agent: Agent) -> Iterator[Lack]:
    if node.silent:
        yield Lack("state", "its agent has been silent for too long", passing=True)
    elif node.state in (NodeState.SUSPECT, NodeState.OFFLINE):
        yield Lack("state", f"it is {node.state.value}", passing=True)
    if agent.draining or node.draining:
        yield Lack("draining", "it is draining", passing=True)
    if node.avoided is not None:
        yield Lack("state", f"it is left alone for a moment: {node.avoided}", passing=True)


def _ability(asked: Demand, agent: Agent) -> Iterator[Lack]:
    slots = [pool.slots for pool in agent.pools if asked.work_type in pool.work_types]
    if not slots:
        yield Lack("work_type", f"it does not run work of type {asked.work_type}")
    elif not any(slots):
        yield Lack("slots", "it has no slots")
    if asked.model_name is not None and asked.model_name not in agent.models:
        yield Lack("model_name", f"it does not serve the model {asked.model_name} now")


def _machine(asked: Wanted, node: Node) -> Iterator[Lack]:
    ram = asked.requirements.ram_mb
    if not asked.machine and not ram:
        return
    if node.hardware is None:
        yield Lack("hardware", "nothing is known yet of what it has", passing=True)
        return
    for clause in asked.machine:
        lack = clause(node.hardware.now)
        if lack is not None:
            yield _of_vram(lack, asked.requirements)
    if ram:
        total, free = node.hardware.now.ram_total_mb, node.hardware.now.ram_free_mb
        few = at_least("ram_mb", total if free is None else free, ram, passing=(total or 0) >= ram)
        if few is not None:
            yield few
    if node.short_of_memory is not None and asked.memory is not None:
        yield Lack("memory", node.short_of_memory, passing=True)


def _of_vram(lack: Lack, asked: Requirements) -> Lack:
    """`vram_mb` is looked at as `min_free_vram_mb`, which its submitter may not have written."""
    mine = lack.field == "min_free_vram_mb" and (asked.vram_mb or 0) > (asked.min_free_vram_mb or 0)
    return replace(lack, field="vram_mb", reason=lack.reason.replace("min_free_vram_mb", "vram_mb")) if mine else lack


def _distrusted(asked: Demand, node: Node) -> Iterator[Lack]:
    """The last clause: who lacks nothing else may be used all the same, when all are on the blacklist."""
    for found in node.distrusted:
        if found.model_name in (None, asked.model_name):
            about = "it" if found.model_name is None else f"with {found.model_name} it"
            yield Lack(BLACKLISTED, f"{about} is on the blacklist: {found.reason}", passing=True)


def badness(node: Node) -> float:
    """How likely it fails, by what is on the blacklist."""
    return max((found.failure_rate for found in node.distrusted), default=0.0)


Rank = tuple[bool, bool, bool, int, int, int, str]


def rank(asked: Wanted, node: Node, free: int, trouble: int = 0, slowness: int = 0) -> Rank:
    """Smaller is better: not tried before, serves a model already, preferred, failed less of late, not twice as slow,
    most free slots."""
    serves = node.agent is not None and bool(node.agent.models)
    preferred = node.node_id in asked.requirements.prefer_node_ids
    return (node.node_id in asked.demand.tried, not serves, not preferred, trouble, slowness, -free, node.node_id)
