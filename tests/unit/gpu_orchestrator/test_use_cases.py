"""What is measured, as others are told of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.transport_memory import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.gpu_orchestrator import GPU_STATES, GpuProcess, GpuState, GpuStates
from libs.common.contracts.node_registry import Memory, Problem
from libs.common.errors import NotFound
from services.gpu_orchestrator.use_cases import GpuOrchestrator
from tests.nodes import gpu
from tests.recording import RecordingObserver

USED = GpuState(gpu=gpu(0), processes=(GpuProcess(pid=7, kind="compute", used_mb=900),))
SILENT = GpuState(gpu=gpu(1), processes=None)


@dataclass
class MadeUpMeters:
    problems: tuple[Problem, ...] = ()
    states: tuple[GpuState, ...] = (USED, SILENT)

    async def gpus(self) -> tuple[tuple[GpuState, ...], tuple[Problem, ...]]:
        return self.states, self.problems

    async def memory(self) -> tuple[Memory, tuple[Problem, ...]]:
        return Memory(total_mb=100, available_mb=40), ()


@dataclass
class World:
    orchestrator: GpuOrchestrator
    meters: MadeUpMeters
    eye: "Eye"
    told: "asyncio.Queue[GpuStates]" = field(default_factory=asyncio.Queue)


@dataclass
class Eye:
    seen: list[tuple[Sequence[GpuState], Memory]] = field(default_factory=list)

    def measured(self, gpus: Sequence[GpuState], memory: Memory) -> None:
        self.seen.append((gpus, memory))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock, meters = ManualClock(), MadeUpMeters()
    async with MemoryServer(clock=clock).connect("gpu") as transport:
        bus = Bus(transport, name="gpu_orchestrator", observer=RecordingObserver(), clock=clock)
        eye = Eye()
        orchestrator = GpuOrchestrator(node_id="n", boot_id="b", meters=meters, bus=bus, clock=clock, observer=eye)
        made = World(orchestrator, meters, eye)
        await bus.subscribe(GPU_STATES, made.told.put)
        yield made


async def test_every_gpu_is_told_with_its_users(world: World):
    await world.orchestrator.tell()

    told = await asyncio.wait_for(world.told.get(), 1)
    assert (told.node_id, told.gpus) == ("n", (USED, SILENT))
    assert world.eye.seen == [((USED, SILENT), Memory(total_mb=100, available_mb=40))]


async def test_the_users_of_one_gpu_are_found_by_its_uuid(world: World):
    assert (await world.orchestrator.processes("GPU-0")).processes == USED.processes


async def test_users_that_the_driver_does_not_tell_are_unknown_not_absent(world: World):
    assert (await world.orchestrator.processes("GPU-1")).processes is None


async def test_a_gpu_that_is_not_here_is_not_found_and_those_here_are_named(world: World):
    with pytest.raises(NotFound) as caught:
        await world.orchestrator.processes("GPU-9")

    assert caught.value.details["gpus"] == ["GPU-0", "GPU-1"]


async def test_what_could_not_be_measured_is_told(world: World):
    world.meters.problems = (Problem(source="nvidia", message="broken"),)

    assert (await world.orchestrator.states()).problems[0].message == "broken"


async def test_memory_is_that_of_now(world: World):
    assert (await world.orchestrator.memory()).memory == Memory(total_mb=100, available_mb=40)
