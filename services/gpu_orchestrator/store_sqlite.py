"""The journal in SQLite."""

import json
import sqlite3
from asyncio import Future
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic_core import to_json

from libs.common.contracts.gpu_orchestrator import ReservationState
from libs.common.errors import WrongSetting
from libs.common.journal.journal_sqlite import LOCK_SECONDS, SqliteFile, Then
from services.gpu_orchestrator.machine import OPEN, Held

KEPT_ENDED = 1000
FORGOTTEN_AT_ONCE = 100
"""To look for what is too old costs a step for each that is kept: so not at every end."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reservations (
    token INTEGER PRIMARY KEY AUTOINCREMENT,
    reservation_id TEXT NOT NULL,
    open INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS ended ON reservations (token) WHERE open = 0;
"""
_WRITE = (
    "INSERT INTO reservations (token, reservation_id, open, body) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (token) DO UPDATE SET open = excluded.open, body = excluded.body"
)
_FORGET = (
    "DELETE FROM reservations WHERE open = 0 AND token <="
    " (SELECT token FROM reservations WHERE open = 0 ORDER BY token DESC LIMIT 1 OFFSET ?)"
)


class SqliteJournal:
    """See `Journal`. A second writer would give the same memory twice: it is refused."""

    def __init__(self, path: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._file = SqliteFile(
            path, schema=_SCHEMA, owner="GPU orchestrator", unreadable=_refuse, lock_seconds=lock_seconds
        )
        self._ended = FORGOTTEN_AT_ONCE

    def problem(self) -> str | None:
        return self._file.problem()

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    def write(self, changed: Sequence[Held], then: Then | None = None, *, synced: bool = True) -> Future[None]:
        rows = [(each.token, each.reservation_id, int(each.is_open), to_json(each).decode()) for each in changed]

        def work(database: sqlite3.Connection) -> None:
            database.executemany(_WRITE, rows)
            self._ended += sum(each.state not in OPEN for each in changed)
            if self._ended >= FORGOTTEN_AT_ONCE:
                self._ended = 0
                database.execute(_FORGET, (KEPT_ENDED,))

        return self._file.at_once(work, then, synced=synced)

    def forget(self, held: Held) -> Future[None]:
        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM reservations WHERE token = ?", (held.token,))

        return self._file.at_once(work, synced=False)

    async def read(self) -> tuple[Sequence[Held], int]:
        def work(database: sqlite3.Connection) -> tuple[Sequence[Held], int]:
            bodies = database.execute("SELECT body FROM reservations ORDER BY token").fetchall()
            last = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reservations'").fetchone()
            return [_held(body) for (body,) in bodies], last[0] if last else 0

        return await self._file.do(work)


def _refuse(path: Path, error: sqlite3.Error) -> None:
    """Begun anew, it would give out memory that is in use."""
    raise WrongSetting(
        f"the journal of reservations {path} cannot be read ({error}); end what runs on the GPUs, then remove it"
    ) from error


def _held(body: str) -> Held:
    told = json.loads(body)
    told["state"] = ReservationState(told["state"])
    told["gpu_uuids"] = tuple(told["gpu_uuids"])
    for name in ("reserved_at", "ended_at"):
        told[name] = datetime.fromisoformat(told[name]) if told[name] else None
    return Held(**told)
