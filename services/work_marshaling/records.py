"""Reads finished work back from the archive, for those who ask of items that are no longer at hand."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.archive.archive import Archive
from libs.common.archive.tables import MOST_ROWS, MOST_VALUES, Equal, Filter, In, Order, Range
from libs.common.clock import Clock
from libs.common.contracts.work_records import Finished
from libs.common.errors import MeshError, Unavailable
from services.work_marshaling.model import Filter as Wanted
from services.work_marshaling.model import Submission
from services.work_marshaling.rows import finished_of
from services.work_marshaling.store import Memory
from services.work_marshaling.tables import WORK_ITEMS

ASK_SECONDS = 5.0
DIGEST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A page of finished work, the newest first. `cursor` leads to the next one; None on the last."""

    items: tuple[Finished, ...]
    cursor: str | None


class Records:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def find(self, work_id: str) -> Finished | None:
        """Raises `Unavailable`."""
        async with _within(ASK_SECONDS):
            row = await self._archive.get(WORK_ITEMS, {"work_id": work_id})
        return None if row is None else finished_of(row)

    async def at_sequence(self, sequence: int, since: datetime) -> Finished | None:
        """The item of this place in a WORK_IN that was made `since`, if it came alone. Raises `Unavailable`."""
        filters = (Equal("sequence", sequence), Range(column="submitted_at", at_least=since))
        async with _within(ASK_SECONDS):
            page = await self._archive.page(WORK_ITEMS, filters, limit=1)
        return finished_of(page.rows[0]) if page.rows else None

    async def page(
        self, wanted: Wanted, *, limit: int, cursor: str | None, ended_before: datetime | None = None
    ) -> Recorded:
        """Raises `Unavailable`, and `Malformed` for a cursor of another question."""
        async with _within(ASK_SECONDS):
            page = await self._archive.page(
                WORK_ITEMS,
                _filters(wanted, ended_before),
                order=Order(column="submitted_at", descending=True),
                limit=min(limit, MOST_ROWS),
                cursor=cursor,
            )
        return Recorded(tuple(finished_of(row) for row in page.rows), page.cursor)

    async def digests(self, work_ids: Sequence[str]) -> Mapping[str, str]:
        """What was submitted under these ids, as far as the archive knows it now. An archive that is away knows none:
        such an item may run again, and the archive keeps it once."""
        if self._archive.problem() is not None:
            return {}
        found: dict[str, str] = {}
        try:
            async with _within(DIGEST_SECONDS):
                for start in range(0, len(work_ids), MOST_VALUES):
                    some = tuple(work_ids[start : start + MOST_VALUES])
                    page = await self._archive.page(WORK_ITEMS, [In("work_id", some)])
                    found |= {row["work_id"]: row["digest"] for row in page.rows if row["digest"]}
        except MeshError:
            return found
        return found

    async def oldest_end(self) -> datetime | None:
        """When the item ended that the archive has longest. Raises `Unavailable`."""
        async with _within(ASK_SECONDS):
            page = await self._archive.page(WORK_ITEMS, order=Order(column="ended_at"), limit=1)
        ended_at: datetime | None = page.rows[0]["ended_at"] if page.rows else None
        return ended_at


def _filters(wanted: Wanted, ended_before: datetime | None) -> list[Filter]:
    filters: list[Filter] = []
    if ended_before is not None:
        filters.append(Range(column="ended_at", below=ended_before))
    if wanted.status is not None:
        filters.append(In("status", tuple(sorted(status.value for status in wanted.status))))
    for column in ("work_type", "model_name", "node_id"):
        value = getattr(wanted, column)
        if value is not None:
            filters.append(Equal(column, value))
    if wanted.since is not None:
        filters.append(Range(column="submitted_at", at_least=wanted.since))
    return filters


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """An archive that does not answer is away."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"the archive did not answer within {seconds:g} s") from None


class EarlierIds:
    """Submitters' ids that ended so long ago that the memory no longer knows them: the archive does.

    It is asked only where it can know more than the memory.
    """

    def __init__(self, records: Records, clock: Clock, *, keep: timedelta) -> None:
        self._records = records
        self._clock = clock
        self._keep = keep
        self._reaches_further = True

    async def look_back(self, made: datetime) -> None:
        """Whether the archive is older than what the memory remembers: longer ago, or than WORK_IN itself."""
        try:
            oldest = await self._records.oldest_end()
        except Unavailable:
            self._reaches_further = True
        else:
            remembered_since = max(made, self._clock.now() - self._keep)
            self._reaches_further = oldest is not None and oldest < remembered_since

    async def digests(self, memory: Memory, items: Iterable[Submission]) -> Mapping[str, str]:
        """Of those items that the memory does not know and the archive does: what was submitted under their ids."""
        if not (self._reaches_further or memory.has_dropped_ids):
            return {}
        own = {item.work_id for item in items if item.work_id is not None}
        unknown = [each for each in own if each not in memory.items and memory.forgotten_digest(each) is None]
        return await self._records.digests(unknown) if unknown else {}
