"""The machine itself, through `libs.hardware`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress

from libs.common.contracts.gpu_orchestrator import GpuProcess, GpuState
from libs.common.contracts.node_registry import Memory, Problem
from libs.hardware import nvidia_answer
from libs.hardware.inspector import Inspector
from services.gpu_orchestrator.meters import Graphics

GROUP_SECONDS = 10.0
"""How often our control group is looked for; to read its limits, where it was, takes less time than a thread."""


class HostMeters:
    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._others = False
        self._grouped_at = float("-inf")

    async def gpus(self) -> Graphics:
        graphics = await self._inspector.graphics()
        self._others = any(gpu.vendor != "nvidia" for gpu in graphics.gpus)
        states = (GpuState(gpu=gpu, processes=_processes(graphics.processes.get(gpu.uuid))) for gpu in graphics.gpus)
        return Graphics(states=tuple(states), links=graphics.links, problems=graphics.problems)

    def used_mb(self) -> Awaitable[Mapping[str, int | None] | None]:
        return _untold() if self._others else self._inspector.used_mb()

    def stalled_ratio(self) -> float | None:
        return self._inspector.stalled_ratio()

    def memory_now(self) -> Memory | None:
        with suppress(OSError, ValueError):
            return self._inspector.memory_now()
        return None

    async def memory(self) -> tuple[Memory, tuple[Problem, ...]]:
        now = asyncio.get_running_loop().time()
        if now - self._grouped_at < GROUP_SECONDS and (memory := self.memory_now()) is not None:
            return memory, ()
        reading = await self._inspector.memory()
        self._grouped_at = now
        return reading.value, reading.problems

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._inspector.close()


async def _untold() -> None:
    """Other vendors' GPUs are measured whole."""


def _processes(found: tuple[nvidia_answer.GpuProcess, ...] | None) -> tuple[GpuProcess, ...] | None:
    if found is None:
        return None
    return tuple(GpuProcess(pid=each.pid, kind=each.kind, name=each.name, used_mb=each.used_mb) for each in found)
