"""What is to be looked at when, on the monotonic clock."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Due(StrEnum):
    LEASE = "lease"
    RETRY = "retry"
    NOT_BEFORE = "not_before"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Timer:
    """`token` and `at` say which lease or retry was meant: an item may have another one by then."""

    kind: Due
    work_id: str
    token: str = ""
    at: datetime | None = None


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, timer: Timer) -> None:
        heapq.heappush(self._heap, (due, next(self._ties), timer))

    def next_due(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[Timer]:
        due: list[Timer] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def keep(self, wanted: Callable[[Timer], bool]) -> None:
        """Drop what nobody waits for any more."""
        self._heap = [entry for entry in self._heap if wanted(entry[2])]
        heapq.heapify(self._heap)
