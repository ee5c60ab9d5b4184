"""Loops: patient when something is away, loud about everything else."""

import asyncio

import pytest
import structlog

from libs.common.clock import ManualClock, SystemClock
from libs.common.errors import Conflict, Unavailable
from libs.common.kit.loops import every
from libs.common.kit.metrics import Metrics


class Action:
    """Each round ends as told: None is well; after the last it waits for ever."""

    def __init__(self, *ends: Exception | None) -> None:
        self.rounds = 0
        self.done = asyncio.Event()
        self._ends = ends

    async def __call__(self) -> None:
        if self.rounds == len(self._ends):
            self.done.set()
            await asyncio.Event().wait()
        end = self._ends[self.rounds]
        self.rounds += 1
        if end is not None:
            raise end


async def play(action: Action, metrics: Metrics | None = None) -> list[str]:
    """Run a loop until its action has nothing left. Returns what was logged."""
    with structlog.testing.capture_logs() as lines:
        task = asyncio.create_task(every(0.0, action, SystemClock(), name="look")(metrics))
        async with asyncio.timeout(5):
            await action.done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return [line["event"] for line in lines]


async def test_an_action_is_repeated_every_period() -> None:
    clock, rounds = ManualClock(), 0
    moved = asyncio.Event()

    async def count() -> None:
        nonlocal rounds
        rounds += 1
        moved.set()

    task = asyncio.create_task(every(10, count, clock, name="count")())
    for expected in (1, 2, 3):
        await moved.wait()
        moved.clear()
        assert rounds == expected
        await asyncio.sleep(0)
        clock.advance(9)
        await asyncio.sleep(0)
        assert rounds == expected
        clock.advance(1)
    task.cancel()


async def test_an_outage_is_logged_once_and_its_end_once() -> None:
    away = Unavailable("away")
    told = await play(Action(None, away, away, away, None, None, away))
    assert told == ["loop_waits", "loop_goes_on", "loop_waits"]


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), Conflict("no")])
async def test_anything_else_leaves_the_loop(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        await every(0.0, Action(None, bug), SystemClock(), name="look")()


async def test_rounds_are_counted_with_their_outcome_and_the_last_success() -> None:
    metrics = Metrics("test", ManualClock(), version="1", python="3")
    await play(Action(None, Unavailable("away"), None), metrics)
    page = metrics.page().decode()
    assert 'mesh_loop_rounds_total{loop="look",outcome="ok"} 2.0' in page
    assert 'mesh_loop_rounds_total{loop="look",outcome="unavailable"} 1.0' in page
    assert 'mesh_loop_last_success_timestamp_seconds{loop="look"} 1.893456e+09' in page
