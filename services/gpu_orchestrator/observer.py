"""Who watches what is measured."""

from collections.abc import Sequence
from typing import Protocol

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Memory


class Observer(Protocol):
    """Counting never fails what is counted."""

    def measured(self, gpus: Sequence[GpuState], memory: Memory) -> None: ...
