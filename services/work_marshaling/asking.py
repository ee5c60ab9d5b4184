"""What is told of items: those at hand from the memory, the others from the archive."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from libs.common.contracts.streams import WORK_IN
from libs.common.contracts.work_marshaling import WorkLookup, WorkStatus, WorkView
from libs.common.contracts.work_records import Finished, WorkPage, WorkResult
from libs.common.errors import Malformed, MeshError, NotFound, Unavailable, error_named
from services.work_marshaling.identity import server_id
from services.work_marshaling.leading import Leading
from services.work_marshaling.listing import page
from services.work_marshaling.model import ENDED, Filter, Refusal, WorkItem
from services.work_marshaling.records import Records
from services.work_marshaling.results import SMALL_BYTES
from services.work_marshaling.rows import view_of
from services.work_marshaling.views import view

SEQUENCE_SECONDS = 1.0
MOST_ROUNDS = 20
_ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a list goes on in the archive: among what ended before this moment, after this page."""

    ended_before: datetime | None
    cursor: str | None

    def __str__(self) -> str:
        moment = "" if self.ended_before is None else self.ended_before.isoformat()
        return f"{_ARCHIVE}|{moment}|{self.cursor or ''}"


class Asking:
    """Everything here needs the leader; `Unavailable` says that this instance is not it now, or the archive is away.

    `pending` says whether there is finished work that the archive does not have yet.
    """

    def __init__(self, *, leading: Leading, records: Records, pending: Callable[[], bool]) -> None:
        self._leading = leading
        self._records = records
        self._pending = pending

    async def look_up(self, asked: WorkLookup) -> WorkView:
        """An item by its id or by its sequence in WORK_IN. Raises `NotFound`, or why it was refused."""
        found = await self.one(asked)
        if isinstance(found, Finished):
            return view_of(found)
        leadership = self._leading.present
        return view(found, await leadership.results.small(found), leadership.term.unsatisfiable(found))

    async def one(self, asked: WorkLookup) -> WorkItem | Finished:
        """Raises `NotFound`, or why it was refused."""
        if (asked.work_id is None) == (asked.sequence is None):
            raise Malformed("give either `work_id` or `sequence`")
        return await self.find_one(asked.work_id) if asked.work_id else await self._at(asked.sequence or 0)

    async def result(self, work_id: str, wait_seconds: float) -> WorkResult:
        """How an item ended; waits for it so long. Raises `NotFound` when it has not ended by then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self._leading.present.term.ended(work_id)
        found = await self.find_one(work_id)
        if isinstance(found, Finished):
            return _archived_result(found)
        if found.open:
            raise NotFound(f"{work_id} has not ended: it is {found.status.value}", status=found.status.value)
        done = next((attempt for attempt in found.attempts if attempt.out_seq == found.out_seq), None)
        completed = found.status is WorkStatus.COMPLETED
        return WorkResult(
            work_id=work_id,
            status=found.status,
            ended_at=found.ended_at,
            node_id=done.node_id if done is not None and found.out_seq is not None else None,
            result=await self._leading.present.results.of(found) if completed else None,
            error=found.error,
        )

    async def find(self, wanted: Filter, *, limit: int, cursor: str | None) -> WorkPage:
        """Items at hand, the newest first; then those that only the archive has, the newest first."""
        term = self._leading.present.term
        memory = term.memory
        items: list[WorkView] = []
        place = _place(cursor)
        if place is None:
            found = page(reversed(memory.items.values()), wanted, limit=limit, cursor=cursor)
            items = [view(item, unsatisfiable_now=term.unsatisfiable(item)) for item in found.items]
            if found.cursor is not None or not _may_have_ended(wanted):
                return WorkPage(items=tuple(items), cursor=found.cursor)
            place = Place(memory.oldest_end(), None)
            if len(items) == limit:
                return WorkPage(items=tuple(items), cursor=str(place))
        return await self._from_archive(items, wanted, place, limit)

    async def find_one(self, work_id: str) -> WorkItem | Finished:
        """As it is on disk, or in the archive. Raises `NotFound`, `Unavailable`."""
        term = self._leading.present.term
        await term.journal.confirmed(work_id)
        item = term.memory.items.get(work_id)
        if item is not None:
            return item
        try:
            found = await self._records.find(work_id)
        except Unavailable as error:
            told = f"{work_id[:128]} is not at hand, and the archive cannot be asked: {error.message}"
            raise Unavailable(told) from error
        if found is not None:
            return found
        if self._pending():
            raise Unavailable(f"{work_id[:128]} is not at hand; if it ended, it is still on its way into the archive")
        raise NotFound(f"there is no work item {work_id[:128]}")

    async def _from_archive(self, items: list[WorkView], wanted: Filter, place: Place, limit: int) -> WorkPage:
        at_hand = self._leading.present.term.memory.items
        cursor = place.cursor
        for _ in range(MOST_ROUNDS):
            try:
                found = await self._records.page(
                    wanted, limit=limit - len(items), cursor=cursor, ended_before=place.ended_before
                )
            except Unavailable:
                if not items:
                    raise
                break
            items.extend(view_of(each) for each in found.items if each.work_id not in at_hand)
            cursor = found.cursor
            if cursor is None:
                return WorkPage(items=tuple(items), cursor=None)
            if len(items) >= limit:
                break
        return WorkPage(items=tuple(items), cursor=str(Place(place.ended_before, cursor)))

    async def _at(self, sequence: int) -> WorkItem | Finished:
        leadership = self._leading.present
        with suppress(TimeoutError):
            async with asyncio.timeout(SEQUENCE_SECONDS):
                await leadership.intake.admitted.reached(sequence)
        memory, made = leadership.term.memory, leadership.term.origins[WORK_IN.name]
        refused = memory.refusal(sequence)
        if refused is not None:
            raise told_refusal(refused)
        candidates = (memory.find(sequence), server_id(made, sequence), server_id(made, sequence, 0))
        at_hand = next((work_id for work_id in candidates if work_id in memory.items), None)
        if at_hand is not None:
            return await self.find_one(at_hand)
        repeated = candidates[0]
        found = await (self._records.find(repeated) if repeated else self._records.at_sequence(sequence, made))
        if found is None:
            raise NotFound(f"no work item is known under the sequence {sequence}")
        return found


def told_refusal(refused: Refusal) -> MeshError:
    return error_named(refused.code, refused.reason, {"work_id": refused.work_id})


def _archived_result(found: Finished) -> WorkResult:
    if found.status is WorkStatus.COMPLETED and found.result_bytes > SMALL_BYTES:
        told = f"the result of {found.work_id} is kept no longer: it had {found.result_bytes} bytes"
        raise NotFound(f"{told}, and the archive keeps those of at most {SMALL_BYTES}", status=found.status.value)
    completed = found.status is WorkStatus.COMPLETED
    return WorkResult(
        work_id=found.work_id,
        status=found.status,
        ended_at=found.ended_at,
        node_id=found.attempts[-1].node_id if completed and found.attempts else None,
        result=found.result,
        error=found.error,
    )


def _may_have_ended(wanted: Filter) -> bool:
    return wanted.status is None or bool(wanted.status & ENDED)


def _place(cursor: str | None) -> Place | None:
    """None while the list is still among what is at hand. Raises `Malformed`."""
    if cursor is None or not cursor.startswith(f"{_ARCHIVE}|"):
        return None
    try:
        _, moment, rest = cursor.split("|")
        return Place(datetime.fromisoformat(moment) if moment else None, rest or None)
    except ValueError:
        raise Malformed("cursor: take it as it was given with the page before", cursor=cursor[:64]) from None
