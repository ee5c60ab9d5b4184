"""The journal in SQLite."""

import asyncio
import json
import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic_core import to_json

from libs.common.contracts.work_marshaling import Assignment, WorkError
from libs.common.journal.journal_sqlite import LOCK_SECONDS, SqliteFile
from libs.common.journal.notes import Notes
from services.node_agent.model import Attempt, AttemptState, KeptOutput, Outcome

log = structlog.get_logger()

OUTPUTS_KEPT = 200

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    token TEXT PRIMARY KEY,
    work_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('accepted', 'ended', 'delivered', 'stopped')),
    accepted_at TEXT NOT NULL,
    started_at TEXT,
    ended_at TEXT,
    assignment TEXT NOT NULL,
    error TEXT,
    result TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS open_attempts ON attempts (accepted_at) WHERE state IN ('accepted', 'ended');
CREATE INDEX IF NOT EXISTS attempts_of_work ON attempts (work_id);
CREATE TABLE IF NOT EXISTS outputs (token TEXT PRIMARY KEY, before INTEGER NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS runs (boot_id TEXT PRIMARY KEY, machine_boot TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS drained (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), reason TEXT NOT NULL) STRICT;
"""
_ACCEPT = (
    "INSERT OR IGNORE INTO attempts (token, work_id, state, accepted_at, assignment) VALUES (?, ?, 'accepted', ?, ?)"
)
_COLUMNS = "state, accepted_at, started_at, ended_at, assignment, error, result"


_Row = tuple[str, str, str, str]


class SqliteJournal:
    """See `Journal`. A second agent on the same file would run things twice: it is refused.

    `machine_boot` names the time since the machine was started.
    """

    def __init__(self, path: Path, *, machine_boot: str = "unknown", lock_seconds: float = LOCK_SECONDS) -> None:
        self._machine_boot = machine_boot
        self._file = SqliteFile(
            path, schema=_SCHEMA, owner="node agent", unreadable=_put_aside, lock_seconds=lock_seconds
        )
        self._notes = Notes(path.with_name(f"{path.name}-begun"))
        self._on_their_way: set[str] = set()
        self._unwritten: list[_Row] = []

    def problem(self) -> str | None:
        return self._file.problem()

    async def open(self) -> None:
        await self._file.open()
        left = [row for line in self._notes.open() if (row := _noted(line)) is not None]
        await self._file.do(lambda database: database.executemany(_ACCEPT, left))
        self._notes.empty()

    async def close(self) -> None:
        await self._file.close()
        self._notes.close()

    async def runs(self, boot_id: str) -> frozenset[str]:
        def write(database: sqlite3.Connection) -> frozenset[str]:
            database.execute("DELETE FROM runs WHERE machine_boot != ?", (self._machine_boot,))
            database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (boot_id, self._machine_boot))
            return frozenset(row[0] for row in database.execute("SELECT boot_id FROM runs"))

        return await self._file.do(write)

    def begin(self, assignments: Sequence[Assignment], at: datetime) -> "asyncio.Future[None]":
        fresh = _rows(assignments, at)
        self._notes.write([to_json(row) for row in fresh])
        rows, self._unwritten = [*self._unwritten, *fresh], []
        self._on_their_way.update(row[0] for row in rows)

        def write(database: sqlite3.Connection) -> None:
            database.executemany(_ACCEPT, rows)

        def written(error: BaseException | None) -> None:
            if error is not None:
                self._unwritten.extend(rows)
                return
            self._on_their_way.difference_update(row[0] for row in rows)
            self._notes.settle(len(rows))

        return self._file.begin(write, written)

    async def accept(self, assignments: Sequence[Assignment], at: datetime) -> frozenset[str]:
        rows = [row for row in _rows(assignments, at) if row[0] not in self._on_their_way]

        def write(database: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row[0] for row in rows if database.execute(_ACCEPT, row).rowcount == 1)

        return await self._file.do(write)

    async def known(self, tokens: Collection[str]) -> frozenset[str]:
        on_their_way = frozenset(self._on_their_way.intersection(tokens))

        def read(database: sqlite3.Connection) -> frozenset[str]:
            query = "SELECT 1 FROM attempts WHERE token = ?"
            return frozenset(token for token in tokens if database.execute(query, (token,)).fetchone())

        return on_their_way | await self._file.do(read)

    async def ended(self, token: str, outcome: Outcome) -> None:
        error = outcome.error.model_dump_json() if outcome.error else None
        result = None if outcome.error else json.dumps(outcome.result)
        row = (_text(outcome.started_at), _text(outcome.ended_at), error, result, token)
        await self._file.do(
            lambda database: database.execute(
                "UPDATE attempts SET state = 'ended', started_at = ?, ended_at = ?, error = ?, result = ?"
                " WHERE token = ? AND state = 'accepted'",
                row,
            )
        )

    async def keep_output(self, token: str, output: KeptOutput) -> None:
        def write(database: sqlite3.Connection) -> None:
            row = (token, output.before, output.text.encode(errors="replace").decode())
            database.execute("INSERT OR REPLACE INTO outputs (token, before, text) VALUES (?, ?, ?)", row)
            database.execute(
                "DELETE FROM outputs WHERE rowid <= (SELECT rowid FROM outputs ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (OUTPUTS_KEPT,),
            )

        await self._file.do(write)

    async def output(self, token: str) -> KeptOutput | None:
        def read(database: sqlite3.Connection) -> KeptOutput | None:
            row = database.execute("SELECT before, text FROM outputs WHERE token = ?", (token,)).fetchone()
            return KeptOutput(before=row[0], text=row[1]) if row else None

        return await self._file.do(read)

    async def drained(self) -> str | None:
        def read(database: sqlite3.Connection) -> str | None:
            row = database.execute("SELECT reason FROM drained").fetchone()
            return str(row[0]) if row else None

        return await self._file.do(read)

    async def keep_drained(self, reason: str | None) -> None:
        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM drained")
            if reason is not None:
                database.execute("INSERT INTO drained (only_one, reason) VALUES (1, ?)", (reason,))

        await self._file.do(write)

    async def delivered(self, tokens: Collection[str]) -> None:
        await self._file.begin(
            lambda database: database.executemany(
                "UPDATE attempts SET state = 'delivered', result = NULL"
                " WHERE token = ? AND state IN ('accepted', 'ended')",
                [(token,) for token in tokens],
            ),
            synced=False,
        )

    async def stopped(self, token: str, at: datetime) -> None:
        await self._file.do(
            lambda database: database.execute(
                "UPDATE attempts SET state = 'stopped', ended_at = ? WHERE token = ? AND state = 'accepted'",
                (at.isoformat(), token),
            )
        )

    async def open_attempts(self) -> list[Attempt]:
        return await self._select("WHERE state IN ('accepted', 'ended') ORDER BY accepted_at")

    async def attempts_at(self, work_id: str) -> list[Attempt]:
        return await self._select("WHERE work_id = ? ORDER BY rowid DESC", work_id)

    async def recent(self, limit: int) -> list[Attempt]:
        return await self._select("ORDER BY rowid DESC LIMIT ?", limit)

    async def forget(self, *, before: datetime, keep: int) -> int:
        def write(database: sqlite3.Connection) -> int:
            over = "state IN ('delivered', 'stopped')"
            old = database.execute(f"DELETE FROM attempts WHERE {over} AND accepted_at < ?", (before.isoformat(),))
            many = database.execute(
                f"DELETE FROM attempts WHERE {over} AND rowid <="
                " (SELECT rowid FROM attempts ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (keep,),
            )
            return old.rowcount + many.rowcount

        return await self._file.do(write)

    async def _select(self, where: str, *values: object) -> list[Attempt]:
        def read(database: sqlite3.Connection) -> list[Attempt]:
            return [_attempt(row) for row in database.execute(f"SELECT {_COLUMNS} FROM attempts {where}", values)]

        return await self._file.do(read)


def _rows(assignments: Sequence[Assignment], at: datetime) -> list[_Row]:
    """The payload is not kept: what was not finished is never run again from here."""
    moment = at.isoformat()
    return [
        (each.attempt_token or "", each.work_id, moment, each.model_dump_json(exclude={"payload"}))
        for each in assignments
    ]


def _noted(line: bytes) -> _Row | None:
    """None for what a power failure left of one."""
    try:
        token, work_id, moment, assignment = json.loads(line)
        return token, work_id, moment, Assignment.model_validate_json(assignment).model_dump_json()
    except ValueError as error:
        log.warning("note_unreadable", bytes=len(line), reason=str(error)[:200])
        return None


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    """A new journal is begun: what the old one knew is told to nobody, and its attempts are given out again."""
    aside = path.with_name(f"{path.name}.unreadable")
    path.replace(aside)
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
    log.error("journal_unreadable", path=str(path), kept_as=str(aside), reason=str(error))


def _attempt(row: tuple[Any, ...]) -> Attempt:
    state, accepted_at, started_at, ended_at, assignment, error, result = row
    outcome = Outcome(
        result=json.loads(result) if result is not None else None,
        error=WorkError.model_validate_json(error) if error is not None else None,
        started_at=_moment(started_at),
        ended_at=_moment(ended_at),
    )
    return Attempt(
        assignment=Assignment.model_validate_json(assignment),
        state=AttemptState(state),
        accepted_at=datetime.fromisoformat(accepted_at),
        outcome=None if state == AttemptState.ACCEPTED else outcome,
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
