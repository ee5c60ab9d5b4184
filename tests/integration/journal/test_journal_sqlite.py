"""What is told to be on disk was synced before; who needs less is told earlier."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.errors import Unavailable
from libs.common.journal import journal_sqlite
from libs.common.journal.journal_sqlite import SqliteFile
from tests.disks import Disk, WithDisk

SCHEMA = "CREATE TABLE IF NOT EXISTS lines (text TEXT) STRICT;"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(journal_sqlite, "os", WithDisk(disk))
    return disk


@pytest.fixture
async def file(tmp_path: Path, disk: Disk) -> AsyncIterator[SqliteFile]:
    file = SqliteFile(tmp_path / "lines.db", schema=SCHEMA, owner="test", unreadable=_raise)
    await file.open()
    yield file
    disk.let_go.set()
    await file.close()


def _raise(path: Path, error: sqlite3.Error) -> None:
    raise error


def write(text: str) -> journal_sqlite.Work[str]:
    def work(database: sqlite3.Connection) -> str:
        database.execute("INSERT INTO lines VALUES (?)", (text,))
        return text

    return work


def count(database: sqlite3.Connection) -> int:
    (number,) = database.execute("SELECT count(*) FROM lines").fetchone()
    return int(number)


async def test_nothing_is_told_before_it_is_synced(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    told = file.begin(write("one"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(told), 0.1)

    disk.let_go.set()
    assert await told == "one"
    assert disk.syncs == 1


async def test_who_needs_no_sync_is_told_when_it_is_written(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    synced, written = file.begin(write("one")), file.begin(write("two"), synced=False)

    assert await asyncio.wait_for(written, 5) == "two"
    assert not synced.done()
    disk.let_go.set()
    await synced
    await file.begin(write("three"), synced=False)
    assert await file.do(count) == 3
    assert disk.syncs == 1


async def test_what_waits_at_the_same_moment_shares_a_sync(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    written = [file.begin(write(str(number))) for number in range(20)]
    disk.let_go.set()

    await asyncio.gather(*written)

    assert disk.syncs <= 2


async def test_reading_syncs_nothing(file: SqliteFile, disk: Disk):
    assert await file.do(count) == 0
    assert disk.syncs == 0


async def test_a_disk_that_failed_at_a_sync_is_not_believed_again(file: SqliteFile, disk: Disk):
    disk.broken = True
    with pytest.raises(Unavailable, match="the disk failed"):
        await file.do(write("one"))

    disk.broken = False
    with pytest.raises(Unavailable, match="restart"):
        await file.do(write("two"))
    assert "Input/output error" in (file.problem() or "")


async def test_a_transaction_that_fails_leaves_nothing_and_the_next_is_taken(file: SqliteFile):
    def broken(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO lines VALUES ('half')")
        database.execute("INSERT INTO pages VALUES (1)")

    with pytest.raises(Unavailable, match="no such table"):
        await file.do(broken)

    assert await file.do(write("whole")) == "whole"
    assert await file.do(count) == 1
    assert file.problem() is None
