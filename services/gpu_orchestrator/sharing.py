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
        self._now: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """Raises what the run raises, to all of them. Who is cancelled does not cancel the others."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._now), name="shared")
            self._next.add_done_callback(_known)
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        for task in (self._next, self._now):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait({before})
        self._now, self._next = self._next, None
        return await self._run()


def _known(task: asyncio.Task[T]) -> None:
    """All who waited may be gone: then its failure is of interest to nobody."""
    if not task.cancelled():
        task.exception()
