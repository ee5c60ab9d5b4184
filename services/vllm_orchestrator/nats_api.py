"""Which subject leads to which method."""

from contextlib import suppress

from libs.common.bus.bus import Bus
from libs.common.contracts.gpu_orchestrator import GPU_STATES
from libs.common.contracts.node_registry import DISCOVER, WORKLOAD, Discover
from libs.common.contracts.vllm_requests import VLLM_LEADER, VLLM_REQUEST
from libs.common.errors import Unavailable
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.requests import Requests
from services.vllm_orchestrator.use_cases import VllmOrchestrator

REQUESTS_AT_ONCE = 32


async def open_doors(
    bus: Bus, orchestrator: VllmOrchestrator, planning: Planning, requests: Requests, holder: str
) -> None:
    """Answer, listen to the nodes, and ask them to say now what they have."""
    await bus.serve(VLLM_REQUEST, requests.answer, at_once=REQUESTS_AT_ONCE)
    await bus.serve(VLLM_LEADER, requests.answer_here, node_id=holder, at_once=REQUESTS_AT_ONCE)
    await bus.subscribe(GPU_STATES, planning.hear, at_once=1)
    await bus.subscribe(WORKLOAD, orchestrator.hear, at_once=1)
    with suppress(Unavailable):  # they tell it every few seconds anyway
        await bus.publish(DISCOVER, Discover(asked_by="vllm_orchestrator"))
