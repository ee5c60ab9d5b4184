"""Writes rows behind the caller's back: in batches, in order, and later when the archive is away."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import structlog

from libs.common.archive.archive import Archive
from libs.common.archive.checks import checked_row
from libs.common.archive.tables import Row, Schema, Table
from libs.common.clock import Clock
from libs.common.errors import Malformed, MeshError

log = structlog.get_logger()

Committed = Callable[[int], None]
Refused = Callable[[str], None]

ROWS_AT_ONCE = 100
"""In one transaction. To prepare them holds up everything else of the process, a thousandth of a second or two."""
AGAIN_SECONDS = 0.5
AGAIN_MOST_SECONDS = 15.0
ROW_SHOWN = 2000
"""Characters, in the log."""


Entry = tuple[Table, dict[str, Any]]


class ArchiveWriter:
    """One service's way into the archive.

    What was taken is kept in memory until the database has committed it, however long that is away; the rows of one
    table are written in the order in which they were given. Nothing is kept on disk: what a process that dies had not
    written is gone, and must be derived again. For this a row may carry a `cursor`, such as a position in a log, and
    `committed` says up to which cursor everything is in the archive: begin after it, and nothing is missing.
    """

    def __init__(
        self,
        archive: Archive,
        schema: Schema,
        clock: Clock,
        *,
        most_rows: int = 20_000,
        committed: Committed | None = None,
        refused: Refused | None = None,
    ) -> None:
        """`most_rows` wait at most. `committed` is called with each cursor that was reached, `refused` with the name of
        the table whenever a row was put aside."""
        self._archive = archive
        self._schema = schema
        self._clock = clock
        self._most = most_rows
        self._tell = committed
        self._tell_refused = refused
        self._waiting: deque[Entry] = deque()
        self._marks: deque[tuple[int, int]] = deque()
        self._taken = 0
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._prepared = False
        self._problem: str | None = None
        self._last_refusal: str | None = None
        self.committed: int | None = None
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many rows are still to be written."""
        return len(self._waiting)

    @property
    def untried(self) -> bool:
        """Whether nothing is known yet: neither that its tables are there nor why not."""
        return not self._prepared and self._problem is None

    def problem(self) -> str | None:
        """Why rows wait, and that some were put aside; None when all are written. Fit for a check: the service works
        on, degraded."""
        waits = None if self._problem is None else f"{self._problem} ({self.waiting} rows wait)"
        aside = f"{self.refused} rows were put aside, the last because {self._last_refusal}" if self.refused else None
        return "; ".join(reason for reason in (waits, aside) if reason is not None) or None

    def put_aside(self, table: Table, row: Row, reason: str) -> None:
        """A row that no archive or this one will never take: it is counted, and what it said is in the log."""
        self.refused += 1
        self._last_refusal = reason
        log.error("archive_row_refused", table=table.name, reason=reason, row=repr(row)[:ROW_SHOWN])
        if self._tell_refused is not None:
            self._tell_refused(table.name)

    def offer(self, table: Table, rows: Sequence[Row], *, cursor: int | None = None) -> bool:
        """Take all of these rows, or none when there is no room: then the caller must come back with them.

        Raises `Malformed`: the rows are such that no archive would take them.
        """
        checked = [(table, checked_row(table, row)) for row in rows]
        if len(self._waiting) + len(checked) > self._most:
            return False
        self._waiting.extend(checked)
        self._taken += len(checked)
        if cursor is not None:
            self.mark(cursor)
        self._change()
        return True

    async def put(self, table: Table, rows: Sequence[Row], *, cursor: int | None = None) -> None:
        """Take these rows as soon as there is room. Raises `Malformed`, also for more than can ever wait."""
        if len(rows) > self._most:
            raise Malformed(f"{len(rows)} rows for {table.name} at once; {self._most} may wait")
        while not self.offer(table, rows, cursor=cursor):
            await self._until_changed()

    def mark(self, cursor: int) -> None:
        """Everything up to this cursor was taken, also where it made no row. Cursors grow."""
        self._marks.append((self._taken, cursor))
        self._advance()

    async def flushed(self) -> None:
        """Return once everything that was taken is in the archive."""
        while self._waiting:
            await self._until_changed()

    async def run(self) -> None:
        """The loop. It ends only by being cancelled."""
        pause = AGAIN_SECONDS
        while True:
            while not self._waiting and self._prepared:
                await self._until_changed()
            if await self._step():
                pause = AGAIN_SECONDS
                continue
            await self._clock.sleep(pause)
            pause = min(2 * pause, AGAIN_MOST_SECONDS)

    @asynccontextmanager
    async def draining(self, seconds: float) -> AsyncIterator[None]:
        """For a service's `lifespan`: at its end what still waits is written, as far as it can be in this time."""
        try:
            yield
        finally:
            await self.drain(seconds)

    async def drain(self, seconds: float) -> int:
        """Write what waits, without patience. Returns how many rows are left, which is logged."""
        try:
            async with asyncio.timeout(seconds):
                while self._waiting and await self._step():
                    continue
        except TimeoutError:
            self._problem = self._problem or "the archive is too slow"
        if self._waiting:
            log.warning("archive_rows_left", rows=self.waiting, reason=self._problem)
        return self.waiting

    async def _step(self) -> bool:
        """Write one batch. Whether that went well; what went wrong is kept as the problem, and told once."""
        async with self._one_at_a_time:
            try:
                await self._write_some()
            except MeshError as error:
                if self._problem is None:
                    log.warning("archive_waits", reason=error.message, code=error.code, rows=self.waiting)
                self._problem = error.message
                return False
            if self._problem is not None:
                log.info("archive_goes_on", rows=self.waiting)
            self._problem = None
            return True

    async def _write_some(self) -> None:
        if not self._prepared:
            await self._archive.prepare(self._schema)
            self._prepared = True
        batch = list(islice(self._waiting, ROWS_AT_ONCE))
        refused: list[tuple[Table, Row, str]] = []
        for table in _in_order(self._schema.tables, batch):
            refused += await self._write(table, _newest(table, [row for owner, row in batch if owner is table]))
        for table, row, reason in refused:
            self.put_aside(table, row, reason)
        for _ in batch:
            self._waiting.popleft()
        self._advance()
        self._change()

    async def _write(self, table: Table, rows: Sequence[Row]) -> list[tuple[Table, Row, str]]:
        """Returns those that the database refuses for what they are: they must not keep back the others."""
        try:
            await self._archive.upsert(table, rows)
        except Malformed as error:
            if len(rows) == 1:
                return [(table, rows[0], error.message)]
            half = len(rows) // 2
            return [*await self._write(table, rows[:half]), *await self._write(table, rows[half:])]
        return []

    def _advance(self) -> None:
        written = self._taken - len(self._waiting)
        reached = None
        while self._marks and self._marks[0][0] <= written:
            reached = self._marks.popleft()[1]
        if reached is not None:
            self.committed = reached
            if self._tell is not None:
                self._tell(reached)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until_changed(self) -> None:
        await self._changed.wait()


def _in_order(tables: Sequence[Table], batch: Sequence[Entry]) -> list[Table]:
    """Tables as their schema orders them; one that it does not name is written last."""
    present = {id(table): table for table, _ in batch}
    places = {id(table): place for place, table in enumerate(tables)}
    return sorted(present.values(), key=lambda table: places.get(id(table), len(places)))


def _newest(table: Table, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each key: the one that would be there if they were written one after the other."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = table.key_of(row)
        if key not in kept or table.replaces(row, kept[key]):
            kept[key] = row
    return list(kept.values())
