"""What the GPU orchestrator needs of the machine it is on."""

from typing import Protocol

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Memory, Problem


class Meters(Protocol):
    async def gpus(self) -> tuple[tuple[GpuState, ...], tuple[Problem, ...]]:
        """Every GPU and its users, measured now, and what could not be."""
        ...

    async def memory(self) -> tuple[Memory, tuple[Problem, ...]]:
        """RAM and swap, measured now, and what could not be."""
        ...
