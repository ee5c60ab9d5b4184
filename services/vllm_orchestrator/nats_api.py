"""Which subject leads to which method."""

from contextlib import suppress

from libs.common.bus.bus import Bus
from libs.common.contracts.gpu_orchestrator import GPU_STATES
from libs.common.contracts.node_registry import DISCOVER, WORKLOAD, Discover
from libs.common.contracts.vllm_orchestrator import PLAN
from libs.common.errors import Unavailable
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.use_cases import VllmOrchestrator

PLANS_AT_ONCE = 32


async def open_doors(bus: Bus, orchestrator: VllmOrchestrator, planning: Planning) -> None:
    """Answer, listen to the nodes, and ask them to say now what they have."""
    await bus.serve(PLAN, planning.plan, at_once=PLANS_AT_ONCE)
    await bus.subscribe(GPU_STATES, planning.hear, at_once=1)
    await bus.subscribe(WORKLOAD, orchestrator.hear, at_once=1)
    with suppress(Unavailable):  # they tell it every few seconds anyway
        await bus.publish(DISCOVER, Discover(asked_by="vllm_orchestrator"))
