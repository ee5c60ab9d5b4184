"""Rows go into the archive behind the caller's back: in order, once it is there, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.tables import Row, Table
from libs.common.archive.writer import ArchiveWriter
from libs.common.clock import ManualClock, SystemClock
from libs.common.errors import Malformed
from tests.contract.archive.parts import SCHEMA, STEPS, THINGS, everything, names, step, thing


class RecordingArchive(MemoryArchive):
    """Also keeps which rows were written together."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, list[str]]] = []

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        await super().upsert(table, rows)
        self.batches.append((table.name, [str(row[table.key[0]]) for row in rows]))


@asynccontextmanager
async def running(writer: ArchiveWriter) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def soon(writer: ArchiveWriter) -> None:
    await asyncio.wait_for(writer.flushed(), 5)


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_what_was_taken_is_written():
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())

    async with running(writer):
        assert writer.offer(THINGS, [thing("a"), thing("b")])
        await soon(writer)

    assert await names(archive) == ["a", "b"]
    assert (writer.waiting, writer.problem()) == (0, None)


async def test_rows_that_came_together_are_written_together_and_parents_last():
    archive = RecordingArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())
    for name in "abc":
        writer.offer(THINGS, [thing(name)])
        writer.offer(STEPS, [step(name, 1)])

    async with running(writer):
        await soon(writer)

    assert archive.batches == [("steps", ["a", "b", "c"]), ("things", ["a", "b", "c"])]


async def test_of_several_rows_of_a_key_the_newest_remains():
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())
    for number, log_seq in ((1, 5), (2, 7), (3, 6)):
        writer.offer(THINGS, [thing("a", number, log_seq=log_seq)])
        writer.offer(STEPS, [step("a", 1, f"text {number}")])

    async with running(writer):
        await soon(writer)

    assert [row["number"] for row in await everything(archive)] == [2]
    assert [row["text"] for row in await everything(archive, STEPS)] == ["text 1"]


async def test_while_the_archive_is_away_rows_wait_and_then_go_in_order():
    archive, clock = RecordingArchive(), ManualClock()
    writer = ArchiveWriter(archive, SCHEMA, clock)
    archive.go_away("the disk is gone")

    async with running(writer):
        for number in range(1200):
            writer.offer(THINGS, [thing(f"n{number:04}", number)], cursor=number)
        await settled()
        assert writer.problem() == "the disk is gone (1200 rows wait)"
        assert writer.committed is None
        archive.come_back()
        clock.advance(60)
        await soon(writer)

    assert [len(written) for _, written in archive.batches] == [100] * 12
    assert [name for _, written in archive.batches for name in written] == [f"n{number:04}" for number in range(1200)]
    assert (writer.problem(), writer.committed) == (None, 1199)


async def test_the_problem_is_told_before_there_is_a_row_to_write():
    archive = MemoryArchive()
    archive.go_away("not yet")
    writer = ArchiveWriter(archive, SCHEMA, ManualClock())

    async with running(writer):
        await settled()

    assert writer.problem() == "not yet (0 rows wait)"


@pytest.mark.parametrize("away", [False, True])
async def test_an_archive_is_untried_until_its_tables_are_there_or_it_is_known_why_not(away: bool):
    archive = MemoryArchive()
    if away:
        archive.go_away("not yet")
    writer = ArchiveWriter(archive, SCHEMA, ManualClock())
    assert writer.untried

    async with running(writer):
        await settled()

    assert not writer.untried


async def test_what_has_no_room_is_refused_whole():
    writer = ArchiveWriter(MemoryArchive(), SCHEMA, SystemClock(), most_rows=3)

    assert writer.offer(THINGS, [thing("a"), thing("b")])
    assert not writer.offer(THINGS, [thing("c"), thing("d")], cursor=9)
    assert writer.offer(THINGS, [thing("c")])
    assert writer.waiting == 3


async def test_putting_waits_for_room():
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock(), most_rows=2)
    await writer.put(THINGS, [thing("a"), thing("b")])
    putting = asyncio.create_task(writer.put(THINGS, [thing("c")]))
    await settled()
    assert not putting.done()

    async with running(writer):
        await asyncio.wait_for(putting, 5)
        await soon(writer)

    assert await names(archive) == ["a", "b", "c"]
    with pytest.raises(Malformed):
        await writer.put(THINGS, [thing("a"), thing("b"), thing("c")])


async def test_a_bad_row_is_told_to_who_gives_it_and_stops_nobody():
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())

    with pytest.raises(Malformed):
        writer.offer(THINGS, [thing("a"), thing("b", note=5)])
    writer.offer(THINGS, [thing("c")])
    async with running(writer):
        await soon(writer)

    assert await names(archive) == ["c"]


async def test_the_cursor_follows_what_is_committed():
    archive, clock = MemoryArchive(), ManualClock()
    told: list[int] = []
    writer = ArchiveWriter(archive, SCHEMA, clock, committed=told.append)
    writer.mark(3)
    writer.offer(THINGS, [thing("a")], cursor=5)
    writer.mark(8)
    archive.go_away()

    async with running(writer):
        await settled()
        assert writer.committed == 3
        archive.come_back()
        clock.advance(60)
        await soon(writer)

    assert writer.committed == 8
    assert told == [3, 8]


async def test_draining_writes_what_waits():
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())

    async with writer.draining(5):
        writer.offer(THINGS, [thing(f"{number}") for number in range(1100)])

    assert len(await everything(archive)) == 1100
    assert writer.waiting == 0


async def test_draining_does_not_wait_for_an_archive_that_is_away():
    archive = MemoryArchive()
    archive.go_away()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock())
    writer.offer(THINGS, [thing("a")], cursor=1)

    assert await writer.drain(5) == 1
    assert writer.committed is None


class RefusingArchive(RecordingArchive):
    """Will never take a thing of this name."""

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        if any(row.get("name") == "bad" for row in rows):
            raise Malformed("a rule of the database says no")
        await super().upsert(table, rows)


async def test_a_row_that_is_refused_for_good_is_put_aside_and_keeps_nobody_back():
    archive, told = RefusingArchive(), list[str]()
    writer = ArchiveWriter(archive, SCHEMA, SystemClock(), refused=told.append)
    things = [thing(name) for name in ("a", "b", "bad", "c", "d", "e")]

    async with running(writer):
        assert writer.offer(THINGS, things, cursor=6)
        await soon(writer)

    assert await names(archive) == ["a", "b", "c", "d", "e"]
    assert (writer.waiting, writer.committed, writer.refused) == (0, 6, 1)
    assert told == ["things"]
    assert writer.problem() == "1 rows were put aside, the last because a rule of the database says no"


async def test_an_outage_while_a_refused_row_is_looked_for_loses_nothing():
    archive, clock = RefusingArchive(), ManualClock()
    writer = ArchiveWriter(archive, SCHEMA, clock)
    writer.offer(THINGS, [thing("a"), thing("bad"), thing("c")])
    archive.go_away("the disk is gone")

    async with running(writer):
        await settled()
        archive.come_back()
        clock.advance(60)
        await soon(writer)

    assert await names(archive) == ["a", "c"]
