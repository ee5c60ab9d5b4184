"""One run for all who wait for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Who asks gets the outcome of a run that began after asking; all who ask while one is on its way share the next.

    So many who ask at once cost one run, and nobody is told of a time before the question.
    """

    def __init__(self, run: Callable[[], Awaitable[T]]) -> None:
        self._run = run
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
            self._task = asyncio.create_task(self._while_asked(), name="shared")
        return told

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _while_asked(self) -> None:
        now: list[asyncio.Future[T]] = []
        try:
            while self._asked:
                now, self._asked = self._asked, []
                await self._once(now)
        finally:
            self._task = None
            for told in (*now, *self._asked):
                told.cancel()

    async def _once(self, asked: list["asyncio.Future[T]"]) -> None:
        try:
            outcome = await self._run()
        except Exception as error:  # noqa: BLE001  # raised to all who asked
            for told in asked:
                if not told.done():
                    told.set_exception(error)
        else:
            for told in asked:
                if not told.done():
                    told.set_result(outcome)
