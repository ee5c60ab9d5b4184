"""What is measured, as others are told of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.contracts.gpu_orchestrator import GPU_STATES, GpuProcess, GpuState
from libs.common.contracts.node_registry import Memory, Problem
from libs.common.errors import NotFound
from tests.nodes import gpu
from tests.unit.gpu_orchestrator.world import World, made_world

USED = GpuState(gpu=gpu(0), processes=(GpuProcess(pid=7, kind="compute", used_mb=900),))
SILENT = GpuState(gpu=gpu(1), processes=None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made_world(tmp_path) as made:
        await made.bus.subscribe(GPU_STATES, made.told.put)
        yield made


async def test_every_gpu_is_told_with_its_users(world: World):
    world.meters.states = (USED, SILENT)
    await world.telling.tell()

    told = await asyncio.wait_for(world.told.get(), 1)
    assert (told.node_id, [(each.gpu, each.processes) for each in told.gpus]) == (
        "n",
        [(USED.gpu, USED.processes), (SILENT.gpu, None)],
    )
    assert world.eye.seen == [(told.gpus, world.meters.ram)]


async def test_the_users_of_one_gpu_are_found_by_its_uuid(world: World):
    world.meters.states = (USED,)
    assert (await world.orchestrator.processes("GPU-0")).processes == USED.processes


async def test_users_that_the_driver_does_not_tell_are_unknown_not_absent(world: World):
    world.meters.states = (USED, SILENT)
    assert (await world.orchestrator.processes("GPU-1")).processes is None


async def test_a_gpu_that_is_not_here_is_not_found_and_those_here_are_named(world: World):
    world.meters.states = (USED, SILENT)
    with pytest.raises(NotFound) as caught:
        await world.orchestrator.processes("GPU-9")

    assert caught.value.details["gpus"] == ["GPU-0", "GPU-1"]


async def test_what_could_not_be_measured_is_told(world: World):
    world.meters.problems = (Problem(source="nvidia", message="broken"),)

    assert (await world.orchestrator.states()).problems[0].message == "broken"


async def test_memory_is_that_of_now(world: World):
    world.meters.ram = Memory(total_mb=100, available_mb=40)
    assert (await world.orchestrator.memory()).memory == Memory(total_mb=100, available_mb=40)
