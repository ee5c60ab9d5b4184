"""The NATS door: which subject leads to which method."""

from libs.common.bus.bus import Bus
from libs.common.contracts.node_administration import DRAIN
from libs.common.contracts.node_registry import ANNOUNCE, HEARTBEAT, QUERY, STATUS, WORKLOAD
from services.node_registry.administration import Administration
from services.node_registry.publishing import Publishing
from services.node_registry.use_cases import NodeRegistry


async def open_door(registry: NodeRegistry, administration: Administration, publishing: Publishing, bus: Bus) -> None:
    """Every registry hears everything; queries are shared. What is heard is taken in its order."""
    await bus.subscribe(ANNOUNCE, registry.hear_announcement, at_once=1)
    await bus.subscribe(HEARTBEAT, registry.hear_heartbeat, at_once=1)
    await bus.subscribe(WORKLOAD, registry.hear_workload, at_once=1)
    await bus.subscribe(STATUS, publishing.hear, at_once=1)
    await bus.serve(QUERY, registry.query)
    await bus.serve(DRAIN, administration.drain)
