"""Group commit: what gathers while one append is on its way is the next record. One fsync carries many decisions."""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from libs.common.errors import Unavailable

S = TypeVar("S")

MOST_BYTES = 400_000
OVER = "this instance no longer writes the log; ask again"


class GroupCommit(Generic[S]):
    """Steps wait here in order until they are written. A step is never split over two writes.

    `weight` is a step's size in bytes, or a little more; one write takes steps of together at most `most_bytes` (a
    single heavier one goes alone).
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[S, int]] = deque()
        self._added = 0
        self._written = 0
        self._something = asyncio.Event()
        self._listeners: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ties = itertools.count()
        self._over = False

    @property
    def added(self) -> int:
        """How many steps were ever added: the position of the newest."""
        return self._added

    @property
    def written(self) -> int:
        """Up to which position everything is on disk."""
        return self._written

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
        if position > self._written:
            if self._over:
                raise Unavailable(OVER)
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._listeners, (position, next(self._ties), reached))
            await reached

    async def run(self, write: Callable[[Sequence[S]], Awaitable[None]]) -> None:
        """Write until cancelled, or until `write` raises. Who waits in `reached` is then told."""
        try:
            while True:
                await self._something.wait()
                steps = self._take()
                await write(steps)
                self._written += len(steps)
                self._tell()
        finally:
            self._over = True
            for _, _, reached in self._listeners:
                if not reached.done():
                    reached.set_exception(Unavailable(OVER))

    def _take(self) -> Sequence[S]:
        taken: list[S] = []
        total = 0
        while self._waiting and (not taken or total + self._waiting[0][1] <= self._most_bytes):
            step, weight = self._waiting.popleft()
            taken.append(step)
            total += weight
        if not self._waiting:
            self._something.clear()
        return taken

    def _tell(self) -> None:
        while self._listeners and self._listeners[0][0] <= self._written:
            reached = heapq.heappop(self._listeners)[2]
            if not reached.done():
                reached.set_result(None)
