"""The machine itself, through `libs.hardware`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.common.contracts.node_registry import Inventory
from libs.hardware.inspector import Inspector
from services.resource_detector.model import Pulse


class HostProbes:
    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    async def inventory(self, *, look_again: bool = False) -> Inventory:
        return await self._inspector.inventory(look_again=look_again)

    async def pulse(self, *, threads: int) -> Pulse:
        pulse = await self._inspector.pulse(threads=threads)
        return Pulse(
            load_ratio=pulse.load_ratio,
            memory_available_mb=pulse.memory.available_mb,
            gpus=pulse.graphics.gpus,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._inspector.close()
