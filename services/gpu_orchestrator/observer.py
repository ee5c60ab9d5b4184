"""Who watches what is measured and reserved."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Memory
from services.gpu_orchestrator.model import Entry


class Observer(Protocol):
    """Counting never fails what is counted."""

    def measured(self, gpus: Sequence[GpuState], memory: Memory) -> None: ...

    def reckoned(self, ledger: Mapping[str, Entry], reservations: Mapping[str, int]) -> None:
        """`reservations`: how many are in each state that is open."""
        ...

    def pressed(self, device: str, level: str, seconds: float) -> None:
        """`seconds`: until nothing is left; infinite when no end is to be seen."""
        ...

    def asked(self, outcome: str) -> None:
        """A reservation was asked for: granted, refused, or failed."""
        ...

    def happened(self, kind: str) -> None:
        """An event of the ledger."""
        ...
