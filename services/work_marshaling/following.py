"""Follows single items: whoever asks is told each state that is on disk, progress, and partial output.

Nobody waits for a reader. What an item's readers are told is kept once, the newest of it; who is too slow for that is
told how much it missed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from libs.common.clock import Clock
from libs.common.contracts.base import Message
from libs.common.contracts.work_events import EventsLost, ItemProgress
from libs.common.contracts.work_marshaling import AttemptProgress, WorkLookup
from libs.common.errors import Unavailable
from services.work_marshaling.asking import Asking
from services.work_marshaling.leading import Leadership
from services.work_marshaling.model import WorkItem
from services.work_marshaling.views import view

MOST_READERS = 1_000
MOST_EVENTS = 256
MOST_CHARACTERS = 256 * 1024
ALIVE_SECONDS = 15.0
KEPT_SECONDS = 30.0
LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; without a message it only says that the stream is alive."""

    id: str
    kind: str = ""
    message: Message | None = None
    last: bool = False


@dataclass(slots=True)
class _Feed:
    """What happened to one item since somebody follows it. The first of `events` has the number `first`."""

    name: str
    events: deque[tuple[str, Message, bool]] = field(default_factory=deque)
    first: int = 1
    characters: int = 0
    readers: int = 0
    left_at: float = 0.0
    over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def newest(self) -> int:
        return self.first + len(self.events) - 1

    @property
    def told_all(self) -> bool:
        """Whether the item's end was the newest event."""
        return bool(self.events) and self.events[-1][2]

    def add(self, kind: str, message: Message, *, last: bool) -> None:
        self.events.append((kind, message, last))
        self.characters += _characters(message)
        while len(self.events) > MOST_EVENTS or (self.characters > MOST_CHARACTERS and len(self.events) > 1):
            self.characters -= _characters(self.events.popleft()[1])
            self.first += 1
        self.tell()

    def end(self) -> None:
        self.over = True
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Watchers:
    """The feeds of all items that are followed here, or were a moment ago: a reader may come back."""

    def __init__(self, clock: Clock, new_id: Callable[[], str]) -> None:
        self._clock = clock
        self._new_id = new_id
        self._feeds: dict[str, _Feed] = {}
        self.readers = 0

    def __contains__(self, work_id: str) -> bool:
        return work_id in self._feeds

    def changed(self, item: WorkItem) -> None:
        """This is on disk."""
        feed = self._feeds.get(item.work_id)
        if feed is not None:
            feed.add("state", view(item), last=not item.open)

    def progressed(self, item: WorkItem, node_id: str, told: AttemptProgress) -> None:
        feed = self._feeds.get(item.work_id)
        if feed is not None and item.live is not None and (told.text or told.fraction is not None):
            message = ItemProgress(
                work_id=item.work_id,
                attempt=item.live.number,
                node_id=node_id,
                fraction=told.fraction,
                text=told.text,
            )
            feed.add("progress", message, last=False)

    async def serve(self, leadership: Leadership) -> None:
        """Runs while this instance leads; afterwards it hears nothing more, and says so by ending all streams."""
        try:
            while True:
                await self._clock.sleep(LOOK_SECONDS)
                self._forget()
        finally:
            for feed in self._feeds.values():
                feed.end()
            self._feeds.clear()

    def join(self, work_id: str) -> _Feed:
        """Raises `Unavailable` when too many follow."""
        if self.readers >= MOST_READERS:
            raise Unavailable(f"{MOST_READERS} streams of events are open, and no more are allowed")
        feed = self._feeds.setdefault(work_id, _Feed(self._new_id()))
        feed.readers += 1
        self.readers += 1
        return feed

    def leave(self, feed: _Feed) -> None:
        self.readers -= 1
        feed.readers -= 1
        feed.left_at = self._clock.monotonic()

    def _forget(self) -> None:
        now = self._clock.monotonic()
        for work_id, feed in tuple(self._feeds.items()):
            if not feed.readers and now - feed.left_at >= KEPT_SECONDS:
                del self._feeds[work_id]


class Following:
    def __init__(self, *, asking: Asking, watchers: Watchers) -> None:
        self._asking = asking
        self._watchers = watchers

    async def follow(self, work_id: str, last_event_id: str | None) -> AsyncIterator[Event]:
        """The item's state now, then what happens to it, to its end. Raises `NotFound`, `Unavailable`.

        `last_event_id` goes on after that event, if it is still known; otherwise it begins with the state as well.
        """
        await self._asking.find_one(work_id)
        if self._watchers.readers >= MOST_READERS:
            raise Unavailable(f"{MOST_READERS} streams of events are open, and no more are allowed")
        return self._events(work_id, last_event_id)

    async def _events(self, work_id: str, last_event_id: str | None) -> AsyncIterator[Event]:
        feed = self._watchers.join(work_id)
        try:
            at, told_all = _number_in(feed, last_event_id), feed.told_all
            if at is None or (at == feed.newest and not told_all):
                before, at = at, feed.newest
                now = await self._asking.look_up(WorkLookup(work_id=work_id))
                ended = now.ended_at is not None
                if before is None or ended:
                    yield Event(f"{feed.name}-{at}", "state", now, last=ended)
                if ended:
                    return
            elif at == feed.newest:
                return
            async for event in self._further(work_id, feed, at):
                yield event
        finally:
            self._watchers.leave(feed)

    async def _further(self, work_id: str, feed: _Feed, at: int) -> AsyncIterator[Event]:
        while True:
            changed = feed.changed
            if at < feed.first - 1:
                lost, at = feed.first - 1 - at, feed.first - 1
                yield Event(f"{feed.name}-{at}", "lost", EventsLost(events=lost))
            elif at < feed.newest:
                at += 1
                kind, message, last = feed.events[at - feed.first]
                told = await self._asking.look_up(WorkLookup(work_id=work_id)) if last else message
                yield Event(f"{feed.name}-{at}", kind, told, last=last)
                if last:
                    return
            elif feed.over:
                return
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await changed.wait()
                        continue
                yield Event(f"{feed.name}-{at}")


def _characters(message: Message) -> int:
    return 500 + (len(message.text or "") if isinstance(message, ItemProgress) else 0)


def _number_in(feed: _Feed, last_event_id: str | None) -> int | None:
    """Which event of this feed is meant. None when it is none of it, or one that is long dropped."""
    name, _, number = (last_event_id or "").rpartition("-")
    if name != feed.name or not (number.isascii() and number.isdigit()):
        return None
    at = int(number[:18])
    return at if feed.first - 1 <= at <= feed.newest else None
