"""A node as others are told of it."""

from collections import Counter
from collections.abc import Sequence

from libs.common.contracts.node_administration import NodesCounted
from libs.common.contracts.node_registry import NodeState, NodeView
from libs.hardware.matching import free_ram_mb, free_vram_mb, gpu_works
from libs.hardware.tiers import usable_mb
from services.node_registry.model import Node


def view(node: Node, now: float) -> NodeView:
    """`now` is the registry's monotonic clock."""
    announced, beat, workload = node.announced, node.beat, node.workload
    return NodeView(
        node_id=announced.node_id,
        state=node.life.state,
        state_reason=node.life.reason,
        tier=announced.tier,
        tier_reasons=announced.tier_reasons,
        labels=announced.labels,
        inventory=announced.inventory,
        boot_id=node.life.boot_id,
        announced_at=announced.at,
        last_heartbeat_seconds_ago=round(max(0.0, now - node.life.heard_at), 3),
        load_ratio=beat.load_ratio if beat is not None else None,
        memory_available_mb=free_ram_mb(node),
        gpus=beat.gpus if beat is not None else (),
        engines=workload.engines if workload is not None else (),
        slots=workload.slots if workload is not None else 0,
        free_slots=workload.free_slots if workload is not None else 0,
        conflict=node.life.conflict,
        draining=node.draining,
        draining_reason=node.drain.reason if node.drain is not None and node.draining else "",
    )


def counted(nodes: Sequence[Node], *, mass_silence: bool) -> NodesCounted:
    online = [node for node in nodes if node.life.state is NodeState.ONLINE]
    gpus = [(node, gpu) for node in online for gpu in node.announced.inventory.gpus if gpu_works(node, gpu)]
    return NodesCounted(
        nodes=len(nodes),
        states=Counter(node.life.state.value for node in nodes),
        tiers=Counter(node.announced.tier.value for node in nodes),
        draining=sum(node.draining for node in nodes),
        gpus=len(gpus),
        vram_total_mb=sum(usable_mb(gpu, node.announced.inventory.memory.total_mb) or 0 for node, gpu in gpus),
        vram_free_mb=sum(free_vram_mb(node, gpu) or 0 for node, gpu in gpus),
        mass_silence=mass_silence,
    )
