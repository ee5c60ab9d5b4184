"""Functions in threads: whatever they do, the loop goes on and slots come back."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.model import JobFailed
from services.node_agent.runner_function import FunctionRunner


def job(name: str, arguments: Any = None) -> Assignment:
    return Assignment(
        work_id="w",
        attempt=1,
        attempt_token="t",
        node_id="n",
        work_type="function",
        timeout_seconds=10,
        lease_seconds=10,
        payload={"function": name, "arguments": arguments},
    )


def runner(freed: Callable[[], None] = lambda: None, *, slots: int = 4, **functions: Any) -> FunctionRunner:
    return FunctionRunner(functions, slots=slots, freed=freed)


async def test_every_call_gets_its_own_result():
    runs = runner(double=lambda number: 2 * number)

    results = await asyncio.gather(*(runs.run(job("double", each), print) for each in range(200)))

    assert results == [2 * each for each in range(200)]
    await runs.close()


async def test_one_thread_does_what_comes_one_after_another_and_each_has_its_own_of_what_comes_at_once():
    together = threading.Barrier(3, timeout=10)

    def meet(_: Any) -> int:
        together.wait()
        return threading.get_ident()

    runs = runner(name=lambda _: threading.get_ident(), meet=meet)

    assert len({await runs.run(job("name"), print) for _ in range(8)}) == 1
    assert len(set(await asyncio.gather(*(runs.run(job("meet"), print) for _ in range(3))))) == 3
    await runs.close()


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(), asyncio.CancelledError(), ValueError("no")])
async def test_a_function_that_raises_anything_at_all_fails_only_its_job(raised: BaseException):
    def fail(_: Any) -> None:
        raise raised

    runs = runner(fail=fail)

    with pytest.raises(JobFailed, match=type(raised).__name__) as failed:
        await runs.run(job("fail"), print)
    assert failed.value.error.retryable
    await runs.close()


async def test_a_function_that_goes_on_after_its_attempt_keeps_its_slot_until_it_returns():
    begun, go_on, freed = threading.Event(), threading.Event(), asyncio.Event()

    def wait(_: Any) -> None:
        begun.set()
        go_on.wait(10)

    runs = runner(freed.set, slots=1, wait=wait)
    attempt = asyncio.create_task(runs.run(job("wait"), print))
    await asyncio.to_thread(begun.wait, 10)

    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    assert (runs.lingering, freed.is_set()) == (1, False)

    go_on.set()
    await asyncio.wait_for(freed.wait(), 10)
    assert runs.lingering == 0
    await runs.close()


async def test_what_is_cancelled_before_a_thread_has_it_is_never_called():
    go_on, called = threading.Event(), list[int]()
    runs = runner(slots=1, wait=lambda _: go_on.wait(10), note=called.append)
    first = asyncio.create_task(runs.run(job("wait"), print))
    second = asyncio.create_task(runs.run(job("note", 1), print))
    await asyncio.sleep(0)

    second.cancel()
    go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    await runs.run(job("note", 2), print)

    assert called == [2]
    await runs.close()
