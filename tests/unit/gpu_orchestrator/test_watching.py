"""What is told of memory that runs out, and what it was like before."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.contracts.gpu_orchestrator import PRESSURE, Commit, GpuProcess, Pressure, PressureLevel, ReserveRequest
from libs.common.contracts.node_registry import Memory
from libs.common.errors import NotFound
from services.gpu_orchestrator.model import RAM
from tests.unit.gpu_orchestrator.world import FREE_MB, World, idle, made_world

TOTAL_MB = 65_536


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made_world(tmp_path) as made:
        yield made


async def heard(world: World) -> "asyncio.Queue[Pressure]":
    told: asyncio.Queue[Pressure] = asyncio.Queue()
    await world.bus.subscribe(PRESSURE, told.put)
    return told


async def second(world: World, used_mb: int) -> None:
    world.meters.ram = Memory(total_mb=TOTAL_MB, available_mb=TOTAL_MB - used_mb)
    await world.watching.watch()
    world.clock.advance(1)


async def test_a_leak_is_told_with_who_grew_and_whose_it_is(world: World):
    told = await heard(world)
    held = await world.orchestrator.reserve(ReserveRequest(gpu_count=0, ram_mb=1000))
    await world.orchestrator.commit(Commit(reservation_id=held.reservation_id, pid=42))
    for number in range(180):
        world.processes.ram_mb = {42: 100 + 300 * number, 7: 500}
        await second(world, 5000 + 300 * number)

    first = await asyncio.wait_for(told.get(), 1)
    assert (first.device, first.before, first.trend.level) == (RAM, PressureLevel.OK, PressureLevel.ELEVATED)
    assert first.total_mb - first.used_mb >= 60 * 300
    assert first.trend.exhausted_in_seconds == pytest.approx((TOTAL_MB - first.used_mb) / 300, rel=0.05)
    assert [(each.pid, each.command, each.reservation_id) for each in first.growers] == [
        (42, "program 42", held.reservation_id)
    ]
    assert first.growers[0].grown_mb == 300 * first.over_seconds
    levels = [first.trend.level, *(told.get_nowait().trend.level for _ in range(told.qsize()))]
    assert set(levels[levels.index(PressureLevel.CRITICAL) :]) == {PressureLevel.CRITICAL}


async def test_memory_that_is_collected_is_told_of_nobody(world: World):
    told = await heard(world)
    for number in range(200):
        await second(world, 20_000 + 1000 * (number % 25))
    await asyncio.sleep(0)

    assert told.empty()
    trend = (await world.orchestrator.memory()).trend
    assert trend is not None
    assert (trend.level, trend.exhausted_in_seconds) == (PressureLevel.OK, None)


async def test_memory_that_is_almost_gone_is_told_until_it_is_well_again(world: World):
    told = await heard(world)
    for number in range(80):
        await second(world, TOTAL_MB - 1000 if number < 25 else 10_000)
    await asyncio.sleep(0)

    levels = [told.get_nowait().trend.level for _ in range(told.qsize())]
    assert levels[0] == PressureLevel.CRITICAL
    assert levels[-1] == PressureLevel.OK
    assert set(levels[:-1]) == {PressureLevel.CRITICAL}


async def test_a_full_gpu_is_no_pressure_and_one_that_fills_beyond_its_claims_is(world: World):
    told = await heard(world)
    world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=FREE_MB - 10)), idle(1))
    for number in range(150):
        stranger = GpuProcess(pid=8, kind="compute", used_mb=1000 + 120 * number)
        world.meters.states = (world.meters.states[0], idle(1, stranger))
        await second(world, 1000)

    first = await asyncio.wait_for(told.get(), 1)
    assert (first.device, first.growers[0].pid) == ("GPU-1", 8)
    states = (await world.orchestrator.states()).gpus
    assert [state.trend.level for state in states if state.trend] == [PressureLevel.OK, PressureLevel.CRITICAL]


async def test_an_engine_that_loads_within_its_claim_is_no_pressure(world: World):
    told = await heard(world)
    held = await world.orchestrator.reserve(ReserveRequest(required_mb=23_000, gpu_indices=(0,)))
    await world.orchestrator.commit(Commit(reservation_id=held.reservation_id, pid=42))
    for number in range(150):
        world.meters.states = (idle(0, GpuProcess(pid=42, kind="compute", used_mb=150 * number)), idle(1))
        await second(world, 1000)
    await asyncio.sleep(0)

    assert told.empty()


async def test_the_history_is_fine_for_a_while_and_coarse_for_a_day(world: World):
    for number in range(1000):
        await second(world, 10_000 + number)
    fine = world.orchestrator.memory_history(60).memory
    coarse = world.orchestrator.memory_history(3600).memory

    assert (fine.step_seconds, [point.used_mb for point in fine.points]) == (1, list(range(10_940, 11_000)))
    assert (coarse.step_seconds, len(coarse.points)) == (30, 34)
    assert [point.used_mb for point in coarse.points][:2] == [10_029, 10_059]


async def test_each_gpu_has_a_history_and_one_that_is_not_here_has_none(world: World):
    await world.orchestrator.reserve(ReserveRequest(required_mb=1000, gpu_indices=(1,)))
    await second(world, 1000)

    found = {each.device: each.points[-1].free_mb for each in world.orchestrator.gpu_history(60).gpus}
    assert found == {"GPU-0": FREE_MB, "GPU-1": FREE_MB - 1000}
    assert [each.device for each in world.orchestrator.gpu_history(60, "GPU-1").gpus] == ["GPU-1"]
    with pytest.raises(NotFound):
        world.orchestrator.gpu_history(60, "GPU-9")


async def test_a_machine_that_waits_for_memory_is_under_pressure(world: World):
    told = await heard(world)
    world.meters.stalled = 0.5
    await second(world, 1000)

    assert (await asyncio.wait_for(told.get(), 1)).trend.level == PressureLevel.CRITICAL
    assert (await world.orchestrator.memory()).stalled_ratio == 0.5
