"""Which subject leads to which method."""

from contextlib import suppress

from libs.common.bus.bus import Bus
from libs.common.contracts.node_registry import DISCOVER, WORKLOAD, Discover
from libs.common.errors import Unavailable
from services.benchmark_runner.use_cases import BenchmarkRunner


async def open_doors(bus: Bus, runner: BenchmarkRunner) -> None:
    """Listen to the nodes, and ask them to say now what they have."""
    await bus.subscribe(WORKLOAD, runner.hear, at_once=1)
    with suppress(Unavailable):  # they tell it every few seconds anyway
        await bus.publish(DISCOVER, Discover(asked_by="benchmark_runner"))
