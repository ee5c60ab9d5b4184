"""One run for all who wait for it."""

import asyncio

import pytest

from services.gpu_orchestrator.sharing import Shared


class Slow:
    """Counts its runs; each ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        return number


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_who_ask_at_once_share_one_run():
    slow = Slow()
    shared = Shared(slow)
    slow.go.set()

    assert await asyncio.gather(*(shared() for _ in range(100))) == [1] * 100


async def test_who_asks_while_one_is_on_its_way_gets_the_next_and_shares_it():
    slow = Slow()
    shared = Shared(slow)
    first = asyncio.create_task(shared())
    await turns()
    late = [asyncio.create_task(shared()) for _ in range(10)]
    await turns()
    begun = slow.begun
    slow.go.set()

    assert (begun, await first, await asyncio.gather(*late)) == (1, 1, [2] * 10)


async def test_an_eager_run_begins_in_the_step_of_who_asks_first_and_is_of_nobody_behind():
    begun: list[int] = []

    def run() -> asyncio.Future[int]:
        begun.append(len(begun) + 1)
        outcome = asyncio.get_running_loop().create_future()
        outcome.set_result(begun[-1])
        return outcome

    shared = Shared(run, eager=True)
    asked = [shared.begin() for _ in range(3)]
    at_once = len(begun)

    assert (at_once, await asyncio.gather(*asked), len(begun)) == (1, [1, 2, 2], 2)


async def test_a_failure_is_that_of_all_who_waited_and_the_next_try_is_anew():
    outcomes = iter([ValueError("broken"), None])

    async def run() -> str:
        if error := next(outcomes):
            raise error
        return "well"

    shared = Shared(run)
    failed = await asyncio.gather(*(shared() for _ in range(3)), return_exceptions=True)

    assert [type(each) for each in failed] == [ValueError] * 3
    assert await shared() == "well"


async def test_who_is_cancelled_does_not_cancel_the_others():
    slow = Slow()
    shared = Shared(slow)
    one, other = asyncio.create_task(shared()), asyncio.create_task(shared())
    await turns()
    one.cancel()
    await turns()
    slow.go.set()

    assert (await other, slow.begun) == (1, 1)
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_closing_ends_what_is_on_its_way():
    slow = Slow()
    shared = Shared(slow)
    waiting = [asyncio.create_task(shared())]
    await turns()
    waiting.append(asyncio.create_task(shared()))
    await turns()
    await shared.close()

    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*waiting, return_exceptions=True)
    )
    assert slow.begun == 1
