"""A node as others are told of it."""

from libs.common.contracts.node_registry import NodeView
from services.node_registry.matching import free_ram_mb
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
    )
