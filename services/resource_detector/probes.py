"""What the detector needs of the machine it is on."""

from typing import Protocol

from libs.common.contracts.node_registry import Inventory
from services.resource_detector.model import Pulse


class Probes(Protocol):
    async def inventory(self, *, look_again: bool = False) -> Inventory:
        """Everything. `look_again`: also for what was missing a moment ago."""
        ...

    async def pulse(self, *, threads: int) -> Pulse:
        """Quick to read. `threads`: the processors that the load is spread over."""
        ...
