"""Time as a dependency, so that a test can own it."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The calendar's time, in UTC. For people and for records; it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow. For leases, deadlines and silence."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Stands still until a test advances it."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._seconds = 0.0
        self._moved = asyncio.Event()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        """Wait until a test has advanced the clock by so much."""
        until = self._seconds + seconds
        while self._seconds < until:
            await self._moved.wait()

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._seconds += seconds
        self._moved.set()
        self._moved = asyncio.Event()

    def set_calendar(self, seconds: float) -> None:
        """Somebody sets the clock on the wall by so much. No time passes."""
        self._now += timedelta(seconds=seconds)
