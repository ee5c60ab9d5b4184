"""A number that only grows, and those who wait for it to reach theirs."""

import asyncio
import heapq
import itertools

from libs.common.errors import MeshError


class Position:
    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._listeners: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ties = itertools.count()
        self._over: MeshError | None = None

    @property
    def value(self) -> int:
        return self._value

    def advance(self, value: int) -> None:
        self._value = max(self._value, value)
        while self._listeners and self._listeners[0][0] <= self._value:
            reached = heapq.heappop(self._listeners)[2]
            if not reached.done():
                reached.set_result(None)

    async def reached(self, value: int) -> None:
        """Wait until it is as far. Raises what `close` was given when it will never be."""
        if value <= self._value:
            return
        if self._over is not None:
            raise self._over
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._listeners, (value, next(self._ties), reached))
        await reached

    def close(self, error: MeshError) -> None:
        """It will not grow any more: whoever waits is told so."""
        self._over = error
        for _, _, reached in self._listeners:
            if not reached.done():
                reached.set_exception(error)
        self._listeners.clear()
