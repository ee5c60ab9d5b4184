"""Blocking calls beside the event loop."""

import asyncio
import threading
import time

import pytest

from libs.common.errors import TimedOut
from libs.hardware.aside import Aside


async def test_it_returns_what_the_call_returns():
    assert await Aside().call("sum", lambda: 1 + 1, seconds=5) == 2


async def test_it_raises_what_the_call_raises():
    with pytest.raises(ZeroDivisionError):
        await Aside().call("division", lambda: 1 / 0, seconds=5)


async def test_the_event_loop_goes_on_meanwhile():
    free = threading.Event()
    waiting = asyncio.create_task(Aside().call("wait", lambda: free.wait(10), seconds=10))

    await asyncio.sleep(0)
    free.set()

    assert await waiting is True


async def test_who_is_stuck_is_not_asked_again_until_it_answers():
    aside, free, asked = Aside(), threading.Event(), []

    def stuck() -> None:
        asked.append(1)
        free.wait(10)

    with pytest.raises(TimedOut, match="does not answer within"):
        await aside.call("disk", stuck, seconds=0.05)
    with pytest.raises(TimedOut, match="has not answered"):
        await aside.call("disk", stuck, seconds=0.05)
    assert len(asked) == 1
    assert await aside.call("another", lambda: "answers", seconds=5) == "answers"

    free.set()
    async with asyncio.timeout(5):
        while await aside.call("disk", lambda: "again", seconds=5) != "again":
            await asyncio.sleep(0)


async def test_who_asks_while_another_waits_gets_the_same_answer():
    aside, free, asked = Aside(), threading.Event(), []

    def slow() -> int:
        asked.append(1)
        free.wait(10)
        return len(asked)

    both = [asyncio.create_task(aside.call("memory", slow, seconds=10)) for _ in range(2)]
    await asyncio.sleep(0)
    free.set()

    assert await asyncio.gather(*both) == [1, 1]


async def test_an_answer_counts_that_came_while_the_loop_stood_still():
    """Also when it looks again only after the time is over."""
    waiting = asyncio.create_task(Aside().call("memory", lambda: "so much", seconds=0.05))
    await asyncio.sleep(0)

    time.sleep(0.2)  # it is meant to stand still

    assert await waiting == "so much"
