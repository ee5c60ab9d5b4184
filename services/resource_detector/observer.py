"""Who watches the detector's work."""

from typing import Protocol

from libs.common.contracts.node_registry import Inventory
from services.resource_detector.model import Pulse


class Observer(Protocol):
    """Counting never fails what is counted."""

    def inventory(self, inventory: Inventory) -> None: ...

    def pulse(self, pulse: Pulse) -> None: ...

    def told(self, kind: str) -> None:
        """`kind`: announcement or heartbeat."""
        ...
