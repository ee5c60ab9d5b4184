"""Which subject leads to which method."""

from contextlib import suppress

from libs.common.bus.bus import Bus
from libs.common.contracts.node_registry import DISCOVER, WORKLOAD, Discover
from libs.common.errors import Unavailable
from services.vllm_orchestrator.use_cases import VllmOrchestrator


async def open_doors(bus: Bus, orchestrator: VllmOrchestrator) -> None:
    """Listen to the nodes, and ask them to say now what they have."""
    await bus.subscribe(WORKLOAD, orchestrator.hear, at_once=1)
    with suppress(Unavailable):  # they tell it every few seconds anyway
        await bus.publish(DISCOVER, Discover(asked_by="vllm_orchestrator"))
