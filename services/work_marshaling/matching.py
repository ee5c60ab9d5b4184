"""Which node may run an item, why not another one, and which one is best. The same code decides and explains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.common.contracts.node_registry import NodeState
from libs.common.contracts.work_marshaling import EXTERNAL, Requirements
from services.work_marshaling.model import WorkItem
from services.work_marshaling.nodes import Agent, Hardware, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an item asks of a node. Items of equal demand are interchangeable to a node."""

    work_type: str
    model_name: str | None
    node_ids: tuple[str, ...] | None
    prefer: tuple[str, ...]
    avoid: tuple[str, ...]
    requires_gpu: bool
    vram_mb_per_gpu: int | None
    ram_mb: int | None
    labels: tuple[tuple[str, str], ...]
    tried: tuple[str, ...]

    @property
    def external(self) -> bool:
        return self.node_ids == (EXTERNAL,)


def demand(item: WorkItem) -> Demand:
    """`tried` are the nodes where an attempt came to nothing: another one is better, if there is one."""
    asked: Requirements = item.spec.requirements
    tried = {attempt.node_id for attempt in item.attempts if attempt.counted} if item.attempts else ()
    return Demand(
        work_type=item.spec.work_type,
        model_name=item.spec.model_name,
        node_ids=asked.node_ids,
        prefer=asked.prefer_node_ids,
        avoid=asked.avoid_node_ids,
        requires_gpu=asked.requires_gpu is True,
        vram_mb_per_gpu=asked.min_vram_mb_per_gpu,
        ram_mb=asked.ram_mb,
        labels=tuple(sorted(asked.labels.items())) if asked.labels else (),
        tried=tuple(sorted(tried)),
    )


def why_not(asked: Demand, node: Node) -> str | None:
    """The first clause that excludes the node; None when it may run the item as soon as it has a free slot."""
    if node.agent is None:
        return "no agent was heard there"
    for clause in _CLAUSES:
        reason = clause(asked, node, node.agent)
        if reason is not None:
            return reason
    return _lacks(asked, node.hardware)


def _state(asked: Demand, node: Node, agent: Agent) -> str | None:
    if node.silent:
        return "its agent has been silent for too long"
    if node.state in (NodeState.SUSPECT, NodeState.OFFLINE):
        return f"it is {node.state.value}"
    if agent.draining:
        return "it is draining"
    return None if node.avoided is None else f"it is left alone for a moment: {node.avoided}"


def _named(asked: Demand, node: Node, agent: Agent) -> str | None:
    if asked.node_ids is not None and node.node_id not in asked.node_ids:
        return "it is not among the item's `node_ids`"
    return "the item avoids it" if node.node_id in asked.avoid else None


def _ability(asked: Demand, node: Node, agent: Agent) -> str | None:
    slots = [pool.slots for pool in agent.pools if asked.work_type in pool.work_types]
    if not slots:
        return f"it does not run work of type {asked.work_type}"
    if asked.model_name is not None and asked.model_name not in agent.models:
        return f"it does not serve the model {asked.model_name} now"
    return None if any(slots) else "it has no slots"


_CLAUSES: Sequence[Callable[[Demand, Node, Agent], str | None]] = (_named, _state, _ability)


def _lacks(asked: Demand, hardware: Hardware | None) -> str | None:
    if not (asked.requires_gpu or asked.vram_mb_per_gpu or asked.ram_mb or asked.labels):
        return None
    if hardware is None:
        return "nothing is known yet of what it has"
    if asked.requires_gpu and not hardware.gpus:
        return "it has no working GPU"
    if asked.vram_mb_per_gpu and (hardware.vram_mb_per_gpu or 0) < asked.vram_mb_per_gpu:
        return f"no GPU with {asked.vram_mb_per_gpu} MiB: the largest has {hardware.vram_mb_per_gpu or 0}"
    ram = hardware.ram_mb if hardware.ram_free_mb is None else hardware.ram_free_mb
    if asked.ram_mb and (ram or 0) < asked.ram_mb:
        return f"{ram or 0} MiB of RAM where {asked.ram_mb} are needed"
    missing = next((label for label in asked.labels if label not in hardware.labels), None)
    return None if missing is None else f"it has no label {missing[0]}={missing[1]}"


Rank = tuple[bool, bool, bool, int, str]


def rank(asked: Demand, node: Node, free: int) -> Rank:
    """Smaller is better: not tried before, serves a model already, preferred by the item, most free slots."""
    serves = node.agent is not None and bool(node.agent.models)
    return (node.node_id in asked.tried, not serves, node.node_id not in asked.prefer, -free, node.node_id)
