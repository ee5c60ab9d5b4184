"""Brings finished work into the archive: from the memory into WORK_DONE, and from there into the database.

An item stays in memory, and so in the log, until WORK_DONE has it; a message stays in WORK_DONE until the database has
it. However long the archive is away, nothing else waits for it, and nothing is lost. It is the other way round: while
much work is done finished work waits, within bounds, because it loses nothing by that.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import structlog

from libs.common.archive.archive import Archive
from libs.common.archive.tables import Schema
from libs.common.archive.writer import ArchiveWriter
from libs.common.bus.bus import Bus, Stored, StreamState
from libs.common.bus.codec import encode
from libs.common.clock import Clock
from libs.common.contracts.base import Written
from libs.common.contracts.streams import WORK_DONE, WORK_IN
from libs.common.contracts.work_log import Archived, PayloadStored
from libs.common.contracts.work_records import FINISHED, Finished, FinishedWork
from libs.common.errors import Malformed, MeshError, NotFound, StreamFull, Unavailable
from libs.common.log.fenced_log import SteppedDown
from services.work_marshaling.identity import canonical_text
from services.work_marshaling.large import Large
from services.work_marshaling.leading import Leadership
from services.work_marshaling.model import WorkItem
from services.work_marshaling.records import EarlierIds
from services.work_marshaling.results import Results
from services.work_marshaling.rows import finished, row_of
from services.work_marshaling.store import CAME_TO_NOTHING
from services.work_marshaling.tables import WORK_ITEMS
from services.work_marshaling.term import Term

MOST_AT_ONCE = 100
MOST_BYTES = 400_000
BREATH = 5
"""So many items of finished work, less than half a millisecond, before everything else has its turn."""
LOOK_SECONDS = 0.25
AGAIN_SECONDS = 1.0
TRIM_SECONDS = 1.0
BUSY_DECISIONS = 25
"""In one look: thirty items a second, about."""
GIVES_WAY_SECONDS = 5.0
GIVES_WAY_ITEMS = 10_000
"""No settings, because both bound what nobody should have to think of: how far the archive is behind, and how much
memory that takes (some 20 MB). More of either would win nothing, since work that comes for longer than this has to be
archived while it comes."""
OWN_MESSAGES = 20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Place:
    """A message of WORK_DONE that the writer has and the database may not have yet."""

    made: datetime
    sequence: int
    at: datetime


@dataclass(frozen=True, slots=True)
class _Own:
    """A message that we wrote into WORK_DONE ourselves: read back, it need not be understood again."""

    json: bytes
    items: tuple[Finished, ...]


class Archiving:
    """`keep_days` is how long finished work stays in the archive; 0: for ever."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        archive: Archive,
        schema: Schema,
        earlier: EarlierIds,
        large: Large,
        keep_days: float,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._archive = archive
        self._earlier = earlier
        self._large = large
        self._keep = timedelta(days=keep_days) if keep_days else None
        self._places: OrderedDict[int, _Place] = OrderedDict()
        self._own: OrderedDict[int, _Own] = OrderedDict()
        self._number = 0
        self._made: datetime | None = None
        self._handed_over = 0
        self._reached = 0
        self._trimmed = 0
        self._stuck: str | None = None
        self.writer = ArchiveWriter(archive, schema, clock, committed=self._committed)

    # What others ask

    @property
    def waiting_rows(self) -> int:
        """Rows that were read from WORK_DONE and wait for the database."""
        return self.writer.waiting

    def pending(self) -> bool:
        """Whether there is finished work that the database does not have yet."""
        return self._handed_over > self._reached

    def behind_seconds(self) -> float:
        """How long the oldest message that the database does not have has been waiting."""
        oldest = next(iter(self._places.values()), None)
        return 0.0 if oldest is None else max(0.0, (self._clock.now() - oldest.at).total_seconds())

    def untried(self) -> bool:
        """Whether the archive was not asked for the first time yet."""
        return self.writer.untried

    def problem(self) -> str | None:
        """Why finished work waits. Everything else goes on."""
        return self._stuck or self.writer.problem() or self._archive.problem()

    # Its life

    async def look(self) -> None:
        """Whether the archive is there, also while there is nothing to write; what is wrong shows in `problem`."""
        if not self.waiting_rows:
            try:
                await self._archive.ping()
            except MeshError as error:
                _log.debug("archive_away", reason=error.message)

    async def retain(self) -> None:
        """Remove what is too old. Raises `Unavailable`."""
        if self._keep is not None:
            removed = await self._archive.delete_older_than(WORK_ITEMS, "ended_at", self._clock.now() - self._keep)
            if removed:
                _log.info("archive_trimmed", rows=removed)

    async def serve(self, leadership: Leadership) -> None:
        """Runs while this instance leads."""
        async with asyncio.TaskGroup() as tasks:
            made = leadership.term.origins[WORK_IN.name]
            tasks.create_task(self._earlier.look_back(made), name="look back")
            tasks.create_task(self._hand_over(leadership), name="finished work")
            tasks.create_task(self._bring(), name="archive")
            tasks.create_task(self._trim(), name="trim WORK_DONE")

    # From the memory into WORK_DONE

    async def _hand_over(self, leadership: Leadership) -> None:
        """What ends meanwhile waits for the next turn, unless there is a message full of it: alone, each item would
        take a message, a record and a transaction of its own."""
        while True:
            await self._turn(leadership.term)
            items = ready(leadership.term)
            while items:
                if await self._tried(items, leadership):
                    more = len(items) == MOST_AT_ONCE
                else:
                    more = True
                    await self._clock.sleep(AGAIN_SECONDS)
                items = ready(leadership.term) if more else []

    async def _tried(self, items: Sequence[WorkItem], leadership: Leadership) -> bool:
        """Whether they were handed over."""
        try:
            await self._hand_over_these(items, leadership)
        except StreamFull as error:
            self._wait_for(f"the stream WORK_DONE is full: {error.message}")
        except Unavailable as error:
            self._wait_for(f"finished work cannot be handed over: {error.message}")
        else:
            self._stuck = None
            return True
        return False

    async def _turn(self, term: Term) -> None:
        """Wait for a moment when there is little to do, or until finished work has waited long enough."""
        began = self._clock.monotonic()
        while True:
            before = term.journal.decisions
            await self._clock.sleep(LOOK_SECONDS)
            decisions, waited = term.journal.decisions - before, self._clock.monotonic() - began
            if not gives_way(decisions, waiting=len(term.memory.unarchived), waited_seconds=waited):
                return

    async def _hand_over_these(self, items: Sequence[WorkItem], leadership: Leadership) -> None:
        """Raises `StreamFull`, `Unavailable`."""
        items = [await self._with_payload(leadership, item) for item in items]
        for own in _messages([each async for each in _told(items, leadership.results)]):
            written = Written(FinishedWork, own.json)
            self._handed_over = (await self._bus.append(FINISHED, written, message_id=None)).sequence
            self._own[self._handed_over] = own
            if len(self._own) > OWN_MESSAGES:
                self._own.popitem(last=False)
            leadership.term.keep((Archived(work_ids=tuple(each.work_id for each in own.items)),))

    async def _with_payload(self, leadership: Leadership, item: WorkItem) -> WorkItem:
        """An item that came to nothing is likely to be run again: a payload that only WORK_IN has is kept for that."""
        spec = item.spec
        if item.status not in CAME_TO_NOTHING or spec.payload is not None or spec.payload_ref is not None:
            return item
        payload = await leadership.payloads.kept(item)
        if payload is None:
            return item
        try:
            ref = await self._large.put(f"payload-of-{item.work_id}", canonical_text(payload).encode())
        except StreamFull as error:
            _log.warning("payload_not_kept", work_id=item.work_id, reason=error.message)
            return item
        leadership.term.keep((PayloadStored(work_id=item.work_id, payload_ref=ref),))
        return leadership.term.memory.items[item.work_id]

    def _wait_for(self, reason: str) -> None:
        if self._stuck is None:
            _log.warning("finished_work_waits", reason=reason)
        self._stuck = reason

    # From WORK_DONE into the database

    async def _bring(self) -> None:
        state = await self._state()
        if self._made not in (None, state.created):
            self._handed_over = 0
            self._own.clear()
        made = self._made = state.created
        self._reached = self._trimmed = state.first_sequence - 1 if state.messages else state.last_sequence
        self._handed_over = max(self._handed_over, state.last_sequence)
        messages = self._bus.read(WORK_DONE, after=0)
        async with aclosing(messages):  # type: ignore[type-var]  # an async generator on every transport
            async for batch in messages:
                for stored in batch:
                    await self._pass_on(stored, made)
                    await asyncio.sleep(0)

    async def _state(self) -> StreamState:
        while True:
            try:
                return await self._bus.stream_state(WORK_DONE)
            except Unavailable:
                await self._clock.sleep(AGAIN_SECONDS)

    async def _pass_on(self, stored: Stored, made: datetime) -> None:
        self._number += 1
        self._places[self._number] = _Place(made, stored.sequence, stored.at)
        try:
            items = self._finished(stored)
            for start in range(0, len(items), BREATH):
                rows = [row_of(told, log_seq=stored.sequence) for told in items[start : start + BREATH]]
                await self.writer.put(WORK_ITEMS, rows)
                await asyncio.sleep(0)
            self.writer.mark(self._number)
        except Malformed as error:
            _log.error("finished_work_unreadable", sequence=stored.sequence, reason=error.message)
            with suppress(MeshError):
                await self._bus.dead_letter(stored, error)
            self.writer.mark(self._number)

    def _finished(self, stored: Stored) -> tuple[Finished, ...]:
        """Raises `Malformed`."""
        own = self._own.pop(stored.sequence, None)
        if own is not None and own.json == stored.payload:
            return own.items
        return self._bus.decode(FINISHED, stored).items

    def _committed(self, number: int) -> None:
        """The writer says: everything up to this message is in the database."""
        while self._places and next(iter(self._places)) <= number:
            _, place = self._places.popitem(last=False)
            if place.made == self._made:
                self._reached = place.sequence

    async def _trim(self) -> None:
        """Raises `SteppedDown` when the stream was made anew under us."""
        while True:
            await self._clock.sleep(TRIM_SECONDS)
            try:
                await self._trim_once()
            except Unavailable as error:
                _log.info("trim_waits", stream=WORK_DONE.name, reason=error.message)

    async def _trim_once(self) -> None:
        if self._made is None or self._reached == self._trimmed:
            return
        state = await self._bus.stream_state(WORK_DONE)
        if state.created != self._made:
            raise SteppedDown(f"the stream {WORK_DONE.name} was made anew", fenced=False)
        reached = self._reached
        await self._bus.purge(WORK_DONE, below=reached + 1)
        self._trimmed = reached


def ready(term: Term) -> list[WorkItem]:
    """The next ended items whose ends are on disk."""
    ready: list[WorkItem] = []
    for work_id in islice(term.memory.unarchived, MOST_AT_ONCE):
        if term.journal.unconfirmed(work_id):
            break
        ready.append(term.memory.items[work_id])
    return ready


def gives_way(decisions: int, *, waiting: int, waited_seconds: float) -> bool:
    """Whether finished work waits on: so many `decisions` were made in one look, so many items are `waiting`."""
    return decisions >= BUSY_DECISIONS and waiting < GIVES_WAY_ITEMS and waited_seconds < GIVES_WAY_SECONDS


async def _told(items: Sequence[WorkItem], results: Results) -> AsyncIterator[tuple[Finished, bytes]]:
    for number, item in enumerate(items):
        if number % BREATH == 0:
            await asyncio.sleep(0)
        try:
            result = await results.small(item)
        except (NotFound, Malformed):
            result = None
        told = finished(item, result)
        yield told, encode(told)


def _messages(told: Sequence[tuple[Finished, bytes]]) -> Iterator[_Own]:
    """As many items in each as fit."""
    items: list[Finished] = []
    parts: list[bytes] = []
    for each, part in told:
        if parts and sum(map(len, parts)) + len(part) > MOST_BYTES:
            yield _message(items, parts)
            items, parts = [], []
        items.append(each)
        parts.append(part)
    if parts:
        yield _message(items, parts)


def _message(items: Sequence[Finished], parts: Sequence[bytes]) -> _Own:
    return _Own(b'{"items":[' + b",".join(parts) + b"]}", tuple(items))
