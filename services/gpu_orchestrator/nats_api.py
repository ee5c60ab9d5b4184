"""The NATS door: which subject leads to which method."""

from libs.common.bus.bus import Bus
from libs.common.contracts.gpu_orchestrator import CAN_FIT, COMMIT, RELEASE, RENEW, RESERVE
from services.gpu_orchestrator.use_cases import GpuOrchestrator

AT_ONCE = 256


async def open_doors(bus: Bus, orchestrator: GpuOrchestrator, node_id: str) -> None:
    """Answer what is asked of this node."""
    await bus.serve(RESERVE, orchestrator.reserve, node_id=node_id, at_once=AT_ONCE)
    await bus.serve(RENEW, orchestrator.renew, node_id=node_id, at_once=AT_ONCE)
    await bus.serve(COMMIT, orchestrator.commit, node_id=node_id, at_once=AT_ONCE)
    await bus.serve(RELEASE, orchestrator.release, node_id=node_id, at_once=AT_ONCE)
    await bus.serve(CAN_FIT, orchestrator.can_fit, node_id=node_id, at_once=AT_ONCE)
