"""The journal in SQLite."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from libs.common.contracts.work_marshaling import Assignment, WorkError
from libs.common.journal.journal_sqlite import LOCK_SECONDS, SqliteFile
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
CREATE TABLE IF NOT EXISTS drained (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), reason TEXT NOT NULL) STRICT;
"""
_ACCEPT = (
    "INSERT OR IGNORE INTO attempts (token, work_id, state, accepted_at, assignment) VALUES (?, ?, 'accepted', ?, ?)"
)
_COLUMNS = "state, accepted_at, started_at, ended_at, assignment, error, result"


class SqliteJournal:
    """See `Journal`. A second agent on the same file would run things twice: it is refused."""

    def __init__(self, path: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._file = SqliteFile(
            path, schema=_SCHEMA, owner="node agent", unreadable=_put_aside, lock_seconds=lock_seconds
        )

    def problem(self) -> str | None:
        return self._file.problem()

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    async def accept(self, assignments: Sequence[Assignment], at: datetime) -> frozenset[str]:
        # The payload is not kept: what was not finished is never run again from here.
        rows: list[tuple[str, str, str, str]] = [
            (
                each.attempt_token or "",
                each.work_id,
                at.isoformat(),
                each.model_dump_json(exclude={"payload"}),
            )
            for each in assignments
        ]

        def write(database: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row[0] for row in rows if database.execute(_ACCEPT, row).rowcount == 1)

        return await self._file.do(write)

    async def known(self, tokens: Collection[str]) -> frozenset[str]:
        def read(database: sqlite3.Connection) -> frozenset[str]:
            query = "SELECT 1 FROM attempts WHERE token = ?"
            return frozenset(token for token in tokens if database.execute(query, (token,)).fetchone())

        return await self._file.do(read)

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
