"""One run for all who wait for it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Who asks gets the outcome of a run that began after asking; all who ask while one is on its way share the next.

    So many who ask at once cost one run, and nobody is told of a time before the question. `eager`: `run` does its
    first part where it is called, and that is in the step of who asks first; whoever asks behind it shares the next.
    """

    def __init__(self, run: Callable[[], Awaitable[T]], *, eager: bool = False) -> None:
        self._run = run
        self._eager = eager
        self._asked: list[asyncio.Future[T]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self) -> T:
        """Raises what the run raises, to all of them. Who is cancelled does not cancel the others."""
        return await self.begin()

    def begin(self) -> "asyncio.Future[T]":
        """As a call, for who does something else meanwhile."""
        told: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append(told)
        if self._task is None:
            first = self._next() if self._eager else None
            self._task = asyncio.create_task(self._while_asked(first), name="shared")
        return told

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _next(self) -> tuple[Sequence["asyncio.Future[T]"], Awaitable[T]]:
        """Who asked until now, and the run for them."""
        asked, self._asked = self._asked, []
        return asked, self._run()

    async def _while_asked(self, first: tuple[Sequence["asyncio.Future[T]"], Awaitable[T]] | None) -> None:
        now, run = first or self._next()
        try:
            await _once(now, run)
            while self._asked:
                now, run = self._next()
                await _once(now, run)
        finally:
            self._task = None
            for told in (*now, *self._asked):
                told.cancel()


async def _once(asked: Sequence["asyncio.Future[T]"], run: Awaitable[T]) -> None:
    try:
        outcome = await run
    except Exception as error:  # noqa: BLE001  # raised to all who asked
        for told in asked:
            if not told.done():
                told.set_exception(error)
    else:
        for told in asked:
            if not told.done():
                told.set_result(outcome)
