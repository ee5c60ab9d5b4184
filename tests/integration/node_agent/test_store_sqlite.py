"""The journal keeps what it said it kept, also when the process is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs.common.contracts.work_marshaling import WorkError
from libs.common.errors import Unavailable
from services.node_agent.model import AttemptState, Outcome
from services.node_agent.store_sqlite import SqliteJournal
from tests.integration.node_agent.mesh import function_job

NOW = datetime(2030, 1, 1, tzinfo=UTC)

WRITER = """
import asyncio, itertools, sys
from datetime import UTC, datetime
from pathlib import Path
from services.node_agent.model import Outcome
from services.node_agent.store_sqlite import SqliteJournal
from tests.integration.node_agent.mesh import function_job

async def main():
    journal = SqliteJournal(Path(sys.argv[1]))
    await journal.open()
    for number in itertools.count():
        token = f"t{number}"
        job = function_job("echo", attempt_token=token)
        if number % 3:
            journal.begin([job], datetime(2030, 1, 1, tzinfo=UTC))
        else:
            await journal.accept([job], datetime(2030, 1, 1, tzinfo=UTC))
        print("accepted", token, flush=True)
        await journal.ended(token, Outcome(result=number))
        print("ended", token, flush=True)
        if number % 2:
            await journal.delivered([token])
            print("delivered", token, flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def journal_at(path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with journal_at(tmp_path / "journal.db") as opened:
        yield opened


def written_until_killed(path: Path, lines: int) -> list[tuple[str, str]]:
    """Run a writer, kill it after so many lines; what it had been told was on disk."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(lines)]
    os.kill(child.pid, signal.SIGKILL)
    told.extend(child.stdout.readlines())
    child.stdout.close()
    child.wait()
    return [(words[0], words[1]) for line in told if len(words := line.split()) == 2 and line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 2, 5, 60, 61, 63])
async def test_what_was_told_is_on_disk_after_a_kill(tmp_path: Path, lines: int):
    told = written_until_killed(tmp_path / "journal.db", lines)

    async with journal_at(tmp_path / "journal.db") as journal:
        left = {attempt.token: attempt for attempt in await journal.open_attempts()}
        known = await journal.known([token for _, token in told])

    assert known == {token for _, token in told}
    delivered = {token for what, token in told if what == "delivered"}
    for token in {token for what, token in told if what == "ended"} - delivered:
        # The delivery of the last one may be on disk though its line was never written.
        if token in left:
            assert left[token].state == AttemptState.ENDED
            assert left[token].outcome == Outcome(result=int(token[1:]))
        else:
            assert int(token[1:]) % 2
    assert not delivered & left.keys()


async def test_a_token_is_new_only_once(journal: SqliteJournal):
    assignment = function_job("echo")
    token = assignment.attempt_token

    assert await journal.accept([assignment, assignment], NOW) == {token}
    assert await journal.accept([assignment], NOW) == frozenset()


async def test_what_begins_is_known_at_once_and_after_a_crash(tmp_path: Path):
    assignment = function_job("echo")
    token = assignment.attempt_token or ""
    crashed = SqliteJournal(tmp_path / "journal.db")
    await crashed.open()
    written = crashed.begin([assignment], NOW)
    noted = (tmp_path / "journal.db-begun").read_bytes()
    assert await crashed.known([token]) == {token}
    assert await crashed.accept([assignment], NOW) == frozenset()
    await written
    await crashed.close()
    (tmp_path / "journal.db").unlink()
    (tmp_path / "journal.db-begun").write_bytes(noted + b"what a power failure left\n")

    async with journal_at(tmp_path / "journal.db") as journal:
        (attempt,) = await journal.open_attempts()
        assert attempt.assignment == assignment.model_copy(update={"payload": None})
        assert (tmp_path / "journal.db-begun").stat().st_size == 0


async def test_what_has_begun_is_written_once_the_database_takes_it(journal: SqliteJournal, tmp_path: Path):
    first, second = function_job("echo"), function_job("echo")
    await journal._file.do(lambda database: database.execute("ALTER TABLE attempts RENAME TO away"))
    with pytest.raises(Unavailable):
        await journal.begin([first], NOW)
    assert (tmp_path / "journal.db-begun").stat().st_size > 0

    await journal._file.do(lambda database: database.execute("ALTER TABLE away RENAME TO attempts"))
    await journal.begin([second], NOW)
    assert {attempt.token for attempt in await journal.open_attempts()} == {first.attempt_token, second.attempt_token}
    assert (tmp_path / "journal.db-begun").stat().st_size == 0


async def test_runs_are_those_since_the_machine_was_started(tmp_path: Path):
    for machine_boot, boot_id, runs in (
        ("monday", "one", {"one"}),
        ("monday", "two", {"one", "two"}),
        ("tuesday", "three", {"three"}),
    ):
        journal = SqliteJournal(tmp_path / "journal.db", machine_boot=machine_boot)
        await journal.open()
        assert await journal.runs(boot_id) == runs
        await journal.close()


async def test_an_outcome_comes_back_as_it_was(journal: SqliteJournal):
    assignment = function_job("echo")
    outcome = Outcome(error=WorkError(code="c", message="ü \u0000", retryable=False), started_at=NOW, ended_at=NOW)
    await journal.accept([assignment], NOW)

    await journal.ended(assignment.attempt_token or "", outcome)

    [attempt] = await journal.open_attempts()
    assert attempt.outcome == outcome
    assert attempt.assignment == assignment.model_copy(update={"payload": None})


async def test_an_end_is_final(journal: SqliteJournal):
    token = (assignment := function_job("echo")).attempt_token or ""
    await journal.accept([assignment], NOW)
    await journal.ended(token, Outcome(result="first"))

    await journal.ended(token, Outcome(result="second"))
    await journal.stopped(token, NOW)

    (attempt,) = await journal.attempts_at(assignment.work_id)
    assert attempt is not None
    assert attempt.outcome == Outcome(result="first")


async def test_a_delivered_result_is_not_kept(journal: SqliteJournal):
    token = (assignment := function_job("echo")).attempt_token or ""
    await journal.accept([assignment], NOW)
    await journal.ended(token, Outcome(result="x" * 1000))

    await journal.delivered([token])

    (attempt,) = await journal.attempts_at(assignment.work_id)
    assert attempt is not None
    assert attempt.state == AttemptState.DELIVERED
    assert attempt.outcome == Outcome(result=None)


async def test_what_is_over_for_long_is_forgotten_and_what_is_open_is_not(journal: SqliteJournal):
    old, fresh, open_one = function_job("echo"), function_job("echo"), function_job("echo")
    await journal.accept([old, open_one], NOW - timedelta(days=2))
    await journal.accept([fresh], NOW)
    for assignment in (old, fresh):
        await journal.ended(assignment.attempt_token or "", Outcome())
        await journal.delivered([assignment.attempt_token or ""])

    assert await journal.forget(before=NOW - timedelta(days=1), keep=100) == 1

    assert {attempt.token for attempt in await journal.recent(10)} == {fresh.attempt_token, open_one.attempt_token}


async def test_no_more_than_so_many_are_kept(journal: SqliteJournal):
    for second in range(10):
        assignment = function_job("echo")
        await journal.accept([assignment], NOW + timedelta(seconds=second))
        await journal.stopped(assignment.attempt_token or "", NOW)

    await journal.forget(before=NOW - timedelta(days=1), keep=4)

    assert len(await journal.recent(100)) == 4


async def test_a_file_that_is_no_journal_is_put_aside(tmp_path: Path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at " * 50)

    async with journal_at(path) as journal:
        assert await journal.open_attempts() == []

    assert (tmp_path / "journal.db.unreadable").exists()


async def test_a_closed_journal_says_so(tmp_path: Path):
    async with journal_at(tmp_path / "journal.db") as journal:
        pass

    with pytest.raises(Unavailable):
        await journal.known(["x"])


async def test_the_file_that_is_synced_has_its_length_before_the_first_attempt(tmp_path: Path):
    path = tmp_path / "journal.db"
    for again in range(2):
        async with journal_at(path) as journal:
            synced = path.with_name("journal.db-wal")
            length = synced.stat().st_size
            for number in range(50):
                await journal.accept([function_job("echo", attempt_token=f"{again}-{number}")], NOW)
            assert synced.stat().st_size == length >= 4_000_000
        assert path.stat().st_size < 5_000_000
