"""What is told to be on disk was synced before; who needs less is told earlier."""

import asyncio
import signal
import sqlite3
import sys
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


def texts(database: sqlite3.Connection) -> list[str]:
    return [text for (text,) in database.execute("SELECT text FROM lines ORDER BY rowid")]


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


async def test_a_change_that_needs_no_sync_is_written_in_the_step_that_asks_for_it(file: SqliteFile, disk: Disk):
    told: list[BaseException | None] = []
    written = file.at_once(write("one"), told.append, synced=False)

    assert (written.done(), told, disk.syncs) == (True, [None], 0)
    assert await file.do(texts) == ["one"]


async def test_what_is_written_at_once_is_told_when_it_is_synced(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    synced = file.at_once(write("one"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(synced), 0.1)

    beside = file.at_once(write("two"), synced=False)
    disk.let_go.set()

    assert beside.done()
    assert (await synced, disk.syncs) == ("one", 1)


async def test_what_is_written_at_once_never_overtakes_what_was_asked_before(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    asked = []
    for number in range(30):
        ask = file.at_once if number % 3 else file.begin
        asked.append(ask(write(str(number)), synced=number % 2 == 0))
        await asyncio.sleep(0)
    disk.let_go.set()
    await asyncio.gather(*asked)

    assert await file.do(texts) == [str(number) for number in range(30)]


async def test_a_disk_that_failed_is_not_believed_about_what_was_written_meanwhile(file: SqliteFile, disk: Disk):
    disk.let_go.clear()
    first = file.at_once(write("one"))
    while disk.waiting == 0:
        await asyncio.sleep(0.001)
    second = file.at_once(write("two"))
    disk.broken = True
    disk.let_go.set()

    told = await asyncio.gather(first, second, return_exceptions=True)

    assert [type(each) for each in told] == [Unavailable, Unavailable]
    assert disk.syncs == 1
    with pytest.raises(Unavailable, match="restart"):
        await file.at_once(write("three"), synced=False)


async def test_a_change_at_once_that_fails_leaves_nothing_and_the_next_is_taken(file: SqliteFile):
    def broken(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO lines VALUES ('half')")
        database.execute("INSERT INTO pages VALUES (1)")

    with pytest.raises(Unavailable, match="no such table"):
        await file.at_once(broken)
    await file.at_once(write("whole"))

    assert (await file.do(texts), file.problem()) == (["whole"], None)


async def test_behind_many_changes_at_once_the_thread_writes_the_log_into_the_database(
    file: SqliteFile, tmp_path: Path
):
    for number in range(journal_sqlite.WRITES_PER_CHECKPOINT):
        assert file.at_once(write(f"<{number}>"), synced=False).done()
    before = (tmp_path / "lines.db").read_bytes()
    handed = file.at_once(write("last"), synced=False)
    assert not handed.done()
    await handed
    await file.do(count)  # behind the checkpoint

    assert b"<7>" not in before
    assert b"<7>" in (tmp_path / "lines.db").read_bytes()
    assert file.at_once(write("next"), synced=False).done()


async def test_what_was_written_at_once_is_there_after_a_kill(tmp_path: Path):
    program = f"""
import asyncio, os
from libs.common.journal.journal_sqlite import SqliteFile
from pathlib import Path
async def main():
    file = SqliteFile(Path({str(tmp_path / "lines.db")!r}), schema={SCHEMA!r}, owner="test", unreadable=print)
    await file.open()
    await file.at_once(lambda database: database.execute("INSERT INTO lines VALUES ('kept')") and None, synced=False)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await child.wait() == -signal.SIGKILL
    file = SqliteFile(tmp_path / "lines.db", schema=SCHEMA, owner="test", unreadable=_raise)
    await file.open()

    assert await file.do(texts) == ["kept"]
    await file.close()
