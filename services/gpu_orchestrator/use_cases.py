"""Measure, answer, tell."""

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import GPU_STATES, GpuProcesses, GpuStates, MemoryState
from libs.common.errors import NotFound
from services.gpu_orchestrator.meters import Meters
from services.gpu_orchestrator.observer import Observer


class GpuOrchestrator:
    def __init__(
        self, *, node_id: str, boot_id: str, meters: Meters, bus: Bus, clock: Clock, observer: Observer
    ) -> None:
        self._node_id = node_id
        self._boot_id = boot_id
        self._meters = meters
        self._bus = bus
        self._clock = clock
        self._observer = observer

    async def states(self) -> GpuStates:
        """Every GPU as it is now."""
        gpus, problems = await self._meters.gpus()
        return GpuStates(
            node_id=self._node_id, boot_id=self._boot_id, at=self._clock.now(), gpus=gpus, problems=problems
        )

    async def processes(self, uuid: str) -> GpuProcesses:
        """Who uses one GPU now. Raises `NotFound`."""
        states = await self.states()
        for state in states.gpus:
            if state.gpu.uuid == uuid:
                return GpuProcesses(uuid=uuid, at=states.at, processes=state.processes)
        raise NotFound(f"There is no GPU {uuid!r} on this machine.", uuid=uuid, gpus=[s.gpu.uuid for s in states.gpus])

    async def memory(self) -> MemoryState:
        """RAM and swap as they are now."""
        memory, problems = await self._meters.memory()
        return MemoryState(node_id=self._node_id, at=self._clock.now(), memory=memory, problems=problems)

    async def tell(self) -> None:
        """Publish every GPU's state. Raises `Disconnected`."""
        states, memory = await self.states(), await self.memory()
        self._observer.measured(states.gpus, memory.memory)
        await self._bus.publish(GPU_STATES, states)
