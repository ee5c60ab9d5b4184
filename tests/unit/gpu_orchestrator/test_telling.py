"""When others are told what is free."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.contracts.gpu_orchestrator import GPU_STATES, GpuStates, Release, ReserveRequest
from tests.nodes import AT
from tests.unit.gpu_orchestrator.world import FREE_MB, World, idle, made_world

LAST = GpuStates(node_id="last", boot_id="b", at=AT, gpus=())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made_world(tmp_path) as made:
        await made.bus.subscribe(GPU_STATES, made.told.put, at_once=1)
        yield made


async def told(world: World) -> list[int | None]:
    """What was free on each GPU when it was told last."""
    states = await asyncio.wait_for(world.told.get(), 1)
    return [state.ledger.free_mb for state in states.gpus if state.ledger]


async def nothing_more(world: World) -> bool:
    """What is published after it comes after it."""
    await world.bus.publish(GPU_STATES, LAST)
    return await asyncio.wait_for(world.told.get(), 1) == LAST


async def test_a_reservation_and_its_end_are_told_without_measuring_anew(world: World):
    await world.telling.tell()
    await told(world)
    measured = world.meters.measured
    world.clock.advance(1)

    held = await world.orchestrator.reserve(ReserveRequest(required_mb=1000, gpu_indices=[0]))
    await world.telling.tell_change()
    assert await told(world) == [FREE_MB - 1000, FREE_MB]

    world.clock.advance(1)
    await world.orchestrator.release(Release(reservation_id=held.reservation_id))
    await world.telling.tell_change()
    assert (await told(world), world.meters.measured) == ([FREE_MB, FREE_MB], measured)


async def test_what_is_not_changed_is_not_told_again_and_nothing_is_told_before_the_first_time(world: World):
    await world.telling.tell_change()
    assert await nothing_more(world)

    await world.telling.tell()
    await told(world)
    world.clock.advance(100)
    await world.telling.tell_change()
    assert await nothing_more(world)


async def test_many_changes_are_told_together_and_not_more_often_than_is_set(world: World):
    await world.telling.tell()
    await told(world)
    for _ in range(9):
        await world.orchestrator.reserve(ReserveRequest(required_mb=100, gpu_indices=[0]))
        await world.telling.tell_change()
        world.clock.advance(0.1)
    assert await nothing_more(world)

    world.clock.advance(0.2)
    await world.telling.tell_change()
    await world.telling.tell_change()
    assert await told(world) == [FREE_MB - 900, FREE_MB]
    assert await nothing_more(world)


async def test_what_others_began_to_use_is_told_once_it_is_measured(world: World):
    await world.telling.tell()
    await told(world)
    world.clock.advance(1)

    gpu = idle(1).gpu.model_copy(update={"vram_used_mb": 700, "vram_free_mb": FREE_MB - 700})
    world.meters.states = (idle(0), idle(1).model_copy(update={"gpu": gpu}))
    await world.watching.watch()
    await world.telling.tell_change()

    assert await told(world) == [FREE_MB, FREE_MB - 700]
