"""A node as others are told of it."""

from collections import Counter
from collections.abc import Sequence

from libs.common.contracts.base import Written
from libs.common.contracts.node_administration import NodesCounted
from libs.common.contracts.node_registry import Inventory, NodeExcluded, NodesFound, NodeState, NodeView, Platform
from services.node_registry.model import Node

_WRITTEN_APART = {"inventory", "gpus"}
_NOT_HERE = Inventory(hostname="", platform=Platform.CPU_ONLY, operating_system="")


def view(node: Node, now: float) -> Written[NodeView]:
    """`now` is the registry's monotonic clock. What is large is there in JSON already, and only put in."""
    announced, pulse, workload = node.announced, node.pulse, node.workload
    machine = pulse.machine
    rest = NodeView.model_construct(
        node_id=machine.node_id,
        state=node.life.state,
        state_reason=node.life.reason,
        tier=machine.tier,
        tier_reasons=announced.tier_reasons,
        labels=dict(machine.labels),
        inventory=_NOT_HERE,
        boot_id=node.life.boot_id,
        announced_at=announced.at,
        last_heartbeat_seconds_ago=round(max(0.0, now - node.life.heard_at), 3),
        load_ratio=pulse.load_ratio,
        memory_available_mb=machine.ram_free_mb,
        engines=workload.engines if workload is not None else (),
        slots=workload.slots if workload is not None else 0,
        free_slots=workload.free_slots if workload is not None else 0,
        conflict=node.life.conflict,
        draining=node.draining,
        draining_reason=node.drain.reason if node.drain is not None and node.draining else "",
    )
    written = rest.__pydantic_serializer__.to_json(rest, exclude=_WRITTEN_APART)
    large = b'{"inventory":%b,"gpus":%b,' % (announced.inventory_json, pulse.beats_json)
    return Written(NodeView, large + written.removeprefix(b"{"))


def found(
    views: Sequence[Written[NodeView]],
    *,
    total: int,
    next_after: str | None,
    excluded: tuple[NodeExcluded, ...] | None,
) -> Written[NodesFound]:
    rest = NodesFound(nodes=(), total=total, next_after=next_after, excluded=excluded)
    written = rest.__pydantic_serializer__.to_json(rest, exclude={"nodes"})
    nodes = b'{"nodes":[%b],' % b",".join(each.json for each in views)
    return Written(NodesFound, nodes + written.removeprefix(b"{"))


def counted(nodes: Sequence[Node], *, mass_silence: bool) -> NodesCounted:
    online = [node for node in nodes if node.life.state is NodeState.ONLINE]
    gpus = [gpu for node in online for gpu in node.pulse.machine.gpus if gpu.works]
    return NodesCounted(
        nodes=len(nodes),
        states=Counter(node.life.state.value for node in nodes),
        tiers=Counter(node.pulse.machine.tier.value for node in nodes),
        draining=sum(node.draining for node in nodes),
        gpus=len(gpus),
        vram_total_mb=sum(gpu.usable_mb or 0 for gpu in gpus),
        vram_free_mb=sum(gpu.free_mb or 0 for gpu in gpus),
        mass_silence=mass_silence,
    )
