"""The NATS door: which subject leads to which method."""

from libs.common.bus.bus import Bus
from libs.common.contracts.node_registry import DISCOVER
from services.resource_detector.use_cases import ResourceDetector


async def open_door(detector: ResourceDetector, bus: Bus) -> None:
    """One discovery at a time: a second question that comes meanwhile gets an answer of its own."""
    await bus.subscribe(DISCOVER, detector.answer_discovery, at_once=1)
