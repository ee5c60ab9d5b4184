"""Who is next: strictly by priority, which waiting improves; within a priority the submitters take turns.

An item's *level* is its priority, one better for every `ageing_seconds` it has waited since it could have run, 0 at
best. The lowest level goes first. Within a level every submitter is a flow of start-time fair queueing with equal
weights (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996): its tag grows by one with each item that is given
away, the smallest tag is next, and a flow that comes back from idling starts at the tag that was served last, so that
nobody saves turns up. A submitter's own items go in the order in which they became ready.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

LEVELS = 10
FLOWS_KEPT = 4096
MOMENT_SECONDS = 0.001

Place = tuple[float, int, int]
"""When the item became ready (seconds of the calendar), and where it stands in the stream. Smaller is older."""

Key = tuple[int, int, Place]
"""Level, tag of its submitter there, place: the smallest is next."""


@dataclass(slots=True, eq=False)
class _Flow:
    """A submitter at one level; `buckets` are those that have their turn there."""

    level: int
    tag: int = 0
    buckets: int = 0


@dataclass(slots=True, eq=False)
class _Bucket:
    """Items of one submitter, priority and demand, the oldest first. `entry` is its only valid one in a heap."""

    priority: int
    submitter: str
    line: "Line"
    waiting: list[tuple[Place, str]] = field(default_factory=list)
    flow: _Flow | None = None
    entry: "_Entry | None" = None
    ages_at: float = math.inf


_Entry = tuple[int, Place, int, _Bucket]


@dataclass(slots=True, eq=False)
class Line:
    """Items that ask the same of a node, by level and submitter."""

    buckets: dict[tuple[int, str], _Bucket] = field(default_factory=dict)
    levels: tuple[list[_Entry], ...] = field(default_factory=lambda: tuple([] for _ in range(LEVELS)))


class Order:
    """Removal is lazy: an entry counts only while `waits(work_id, place, line)` says so."""

    def __init__(self, *, ageing_seconds: float, waits: Callable[[str, Place, Line], bool]) -> None:
        self._ageing_seconds = ageing_seconds
        self._waits = waits
        self._now = -math.inf
        self._flows: dict[tuple[int, str], _Flow] = {}
        self._flows_most = FLOWS_KEPT
        self._active = [0] * LEVELS
        self._served = [0] * LEVELS
        self._ageing: list[tuple[float, int, _Bucket]] = []
        self._ties = itertools.count()

    def level(self, priority: int, place: Place) -> int:
        """Where an item of this priority stands by now."""
        waited = self._now - place[0]
        if waited < self._ageing_seconds:
            return priority
        return max(0, priority - int(waited / self._ageing_seconds))

    def add(self, line: Line, work_id: str, place: Place, priority: int, submitter: str) -> None:
        bucket = line.buckets.get((priority, submitter))
        if bucket is None:
            bucket = line.buckets[(priority, submitter)] = _Bucket(priority, submitter, line)
        entry = (place, work_id)
        heapq.heappush(bucket.waiting, entry)
        if bucket.waiting[0] is entry:
            self._enter(bucket)

    def pass_time(self, now: float) -> None:
        """Who has waited long enough moves up. Time never goes back here."""
        self._now = max(self._now, now)
        while self._ageing and self._ageing[0][0] <= self._now:
            _, _, bucket = heapq.heappop(self._ageing)
            bucket.ages_at = math.inf
            if bucket.entry is not None:
                self._enter(bucket)

    def head(self, line: Line) -> tuple[Key, str] | None:
        """The line's next item and its key; None when nothing waits there."""
        for level, entries in enumerate(line.levels):
            while entries:
                entry = entries[0]
                tag, place, _, bucket = entry
                if bucket.entry is not entry:
                    heapq.heappop(entries)
                    continue
                front = self._front(bucket)
                flow = bucket.flow
                if front is not None and flow is not None and front[0] == place and flow.tag == tag:
                    return (level, tag, place), front[1]
                heapq.heappop(entries)
                if front is None:
                    self._close(bucket)
                else:
                    self._enter(bucket)
        return None

    def served(self, key: Key, submitter: str) -> None:
        """An item of this submitter was given away at this level: its next turn comes after everybody else's."""
        level = key[0]
        flow = self._flows.get((level, submitter))
        if flow is None or self._active[level] < 2:
            return
        self._served[level] = max(self._served[level], flow.tag)
        flow.tag = self._served[level] + 1

    def ahead(self, lines: Iterable[Line], level: int, submitter: str, place: Place) -> int:
        """How many will be given away before an item, if nothing else comes and all can run.

        With k items of its submitter before it, every other submitter has about k turns first.
        """
        before = 0
        beside: Counter[str] = Counter()
        for bucket in (bucket for line in lines for bucket in line.buckets.values()):
            for other, work_id in bucket.waiting:
                if self._waits(work_id, other, bucket.line):
                    stands = self.level(bucket.priority, other)
                    before += stands < level
                    if stands == level and (bucket.submitter != submitter or other < place):
                        beside[bucket.submitter] += 1
        mine = beside.pop(submitter, 0)
        rounds = mine + self._tag(level, submitter)
        turns = (max(0, min(count, rounds - self._tag(level, other) + 1)) for other, count in beside.items())
        return before + mine + sum(turns)

    def _tag(self, level: int, submitter: str) -> int:
        flow = self._flows.get((level, submitter))
        return self._served[level] if flow is None else flow.tag

    def _front(self, bucket: _Bucket) -> tuple[Place, str] | None:
        """The oldest that still counts."""
        while bucket.waiting:
            place, work_id = bucket.waiting[0]
            if self._waits(work_id, place, bucket.line):
                return bucket.waiting[0]
            heapq.heappop(bucket.waiting)
        return None

    def _enter(self, bucket: _Bucket) -> None:
        """Into the heap of the level where its oldest item stands."""
        place = bucket.waiting[0][0]
        level = self.level(bucket.priority, place)
        flow = self._flow(level, bucket)
        entry = (flow.tag, place, next(self._ties), bucket)
        bucket.entry = entry
        heapq.heappush(bucket.line.levels[level], entry)
        ages_at = place[0] + (bucket.priority - level + 1) * self._ageing_seconds
        ages_at = max(ages_at, self._now + MOMENT_SECONDS)  # rounded, it may be now: then it would be for ever
        if level > 0 and ages_at < bucket.ages_at:
            bucket.ages_at = ages_at
            heapq.heappush(self._ageing, (ages_at, next(self._ties), bucket))

    def _flow(self, level: int, bucket: _Bucket) -> _Flow:
        if bucket.flow is not None and bucket.flow.level == level:
            return bucket.flow
        self._leave(bucket)
        flow = self._flows.get((level, bucket.submitter))
        if flow is None:
            self._forget_idle()
            flow = self._flows[(level, bucket.submitter)] = _Flow(level)
        if flow.buckets == 0:
            flow.tag = max(flow.tag, self._served[level])
            self._active[level] += 1
        flow.buckets += 1
        bucket.flow = flow
        return flow

    def _leave(self, bucket: _Bucket) -> None:
        if bucket.flow is not None:
            bucket.flow.buckets -= 1
            if bucket.flow.buckets == 0:
                self._active[bucket.flow.level] -= 1
            bucket.flow = None

    def _close(self, bucket: _Bucket) -> None:
        self._leave(bucket)
        bucket.entry = None
        del bucket.line.buckets[(bucket.priority, bucket.submitter)]

    def _forget_idle(self) -> None:
        """A flow that has nothing waiting and no turn ahead of the others is as good as a new one."""
        if len(self._flows) < self._flows_most:
            return
        self._flows = {
            name: flow for name, flow in self._flows.items() if flow.buckets or flow.tag > self._served[flow.level]
        }
        self._flows_most = max(FLOWS_KEPT, 2 * len(self._flows))
