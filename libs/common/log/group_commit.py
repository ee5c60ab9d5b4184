"""Group commit: what gathers while one write is on its way is the next one. One fsync carries many decisions."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from libs.common.errors import Unavailable
from libs.common.log.position import Position

S = TypeVar("S")

MOST_BYTES = 400_000


async def _nothing() -> None:
    """Between two writes, unless there is something else to do."""


class GroupCommit(Generic[S]):
    """Steps wait here in order until they are written. A step is never split over two writes.

    `weight` is a step's size in bytes, or a little more; one write takes steps of together at most `most_bytes` (a
    single heavier one goes alone), and not more than `most_steps`.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, most_steps: int = 10_000) -> None:
        self._most_bytes = most_bytes
        self._most_steps = most_steps
        self._waiting: deque[tuple[S, int]] = deque()
        self._added = 0
        self._written = Position()
        self._something = asyncio.Event()

    @property
    def added(self) -> int:
        """How many steps were ever added: the position of the newest."""
        return self._added

    @property
    def written(self) -> int:
        """Up to which position everything is on disk."""
        return self._written.value

    @property
    def waiting(self) -> int:
        """How many steps are not yet being written."""
        return len(self._waiting)

    def add(self, step: S, weight: int) -> int:
        """Returns the step's position, for `reached`."""
        self._waiting.append((step, weight))
        self._added += 1
        self._something.set()
        return self._added

    async def reached(self, position: int) -> None:
        """Wait until everything up to this position is on disk. Raises `Unavailable` when that will not be."""
        await self._written.reached(position)

    async def run(
        self, write: Callable[[Sequence[S]], Awaitable[None]], between: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        """Write until cancelled, or until `write` raises. `between` runs after every write, before the next one."""
        try:
            while True:
                await self._something.wait()
                steps = self._take()
                await write(steps)
                self._written.advance(self._written.value + len(steps))
                await between()
        finally:
            self._written.close(Unavailable("this instance writes no more; ask again"))

    def _take(self) -> Sequence[S]:
        taken: list[S] = []
        total = 0
        while self._waiting and len(taken) < self._most_steps:
            step, weight = self._waiting[0]
            if taken and total + weight > self._most_bytes:
                break
            self._waiting.popleft()
            taken.append(step)
            total += weight
        if not self._waiting:
            self._something.clear()
        return taken
