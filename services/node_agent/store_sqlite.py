"""The journal in SQLite: one thread, and one fsync for all that waits at the moment."""

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import structlog

from libs.common.contracts.work_marshaling import Assignment, WorkError
from libs.common.errors import Unavailable, WrongSetting
from services.node_agent.model import Attempt, AttemptState, Outcome

log = structlog.get_logger()

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MOST_AT_ONCE = 1000
LOCK_SECONDS = 5.0
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
"""
_ACCEPT = (
    "INSERT OR IGNORE INTO attempts (token, work_id, state, accepted_at, assignment) VALUES (?, ?, 'accepted', ?, ?)"
)
_COLUMNS = "state, accepted_at, started_at, ended_at, assignment, error, result"


class SqliteJournal:
    """See `Journal`. The file is locked for as long as it is open: a second agent on it would run things twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: SimpleQueue[tuple[Work[Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._problem: str | None = "the journal is not open yet"

    def problem(self) -> str | None:
        return self._problem

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, opened), name="journal", daemon=True)
        self._thread.start()
        await opened
        self._problem = None

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._waiting.put(None)
        while thread.is_alive():  # noqa: ASYNC110  # a thread tells no event loop that it ended
            await asyncio.sleep(0.005)

    async def accept(self, assignments: Sequence[Assignment], at: datetime) -> frozenset[str]:
        # The payload is not kept: what was not finished is never run again from here.
        rows: list[tuple[str, str, str, str]] = [
            (
                each.attempt_token or "",
                each.work_id,
                at.isoformat(),
                each.model_copy(update={"payload": None}).model_dump_json(),
            )
            for each in assignments
        ]

        def write(database: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row[0] for row in rows if database.execute(_ACCEPT, row).rowcount == 1)

        return await self._do(write)

    async def known(self, tokens: Collection[str]) -> frozenset[str]:
        def read(database: sqlite3.Connection) -> frozenset[str]:
            query = "SELECT 1 FROM attempts WHERE token = ?"
            return frozenset(token for token in tokens if database.execute(query, (token,)).fetchone())

        return await self._do(read)

    async def ended(self, token: str, outcome: Outcome) -> None:
        error = outcome.error.model_dump_json() if outcome.error else None
        result = None if outcome.error else json.dumps(outcome.result)
        row = (_text(outcome.started_at), _text(outcome.ended_at), error, result, token)
        await self._do(
            lambda database: database.execute(
                "UPDATE attempts SET state = 'ended', started_at = ?, ended_at = ?, error = ?, result = ?"
                " WHERE token = ? AND state = 'accepted'",
                row,
            )
        )

    async def delivered(self, token: str) -> None:
        await self._do(
            lambda database: database.execute(
                "UPDATE attempts SET state = 'delivered', result = NULL"
                " WHERE token = ? AND state IN ('accepted', 'ended')",
                (token,),
            )
        )

    async def stopped(self, token: str, at: datetime) -> None:
        await self._do(
            lambda database: database.execute(
                "UPDATE attempts SET state = 'stopped', ended_at = ? WHERE token = ? AND state = 'accepted'",
                (at.isoformat(), token),
            )
        )

    async def open_attempts(self) -> list[Attempt]:
        return await self._select("WHERE state IN ('accepted', 'ended') ORDER BY accepted_at")

    async def find(self, token: str) -> Attempt | None:
        found = await self._select("WHERE token = ?", token)
        return found[0] if found else None

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

        return await self._do(write)

    async def _select(self, where: str, *values: object) -> list[Attempt]:
        def read(database: sqlite3.Connection) -> list[Attempt]:
            return [_attempt(row) for row in database.execute(f"SELECT {_COLUMNS} FROM attempts {where}", values)]

        return await self._do(read)

    async def _do(self, work: Work[T]) -> T:
        if self._thread is None:
            raise Unavailable("the journal is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.put((work, done))
        return await done

    def _run(self, loop: asyncio.AbstractEventLoop, opened: "asyncio.Future[None]") -> None:
        """The journal's own thread."""
        try:
            database = _open(self._path)
        except Exception as error:  # noqa: BLE001  # told to the one who waits
            loop.call_soon_threadsafe(_resolve, [(opened, None, error)])
            return
        loop.call_soon_threadsafe(_resolve, [(opened, None, None)])
        with contextlib.closing(database):
            while (batch := self._next_batch()) is not None:
                results = self._commit(database, batch)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, results)

    def _next_batch(self) -> list[tuple[Work[Any], "asyncio.Future[Any]"]] | None:
        batch: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) == MOST_AT_ONCE:
                return batch
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return batch
        if batch:
            self._waiting.put(None)
            return batch
        return None

    def _commit(self, database: sqlite3.Connection, batch: list[tuple[Work[Any], "asyncio.Future[Any]"]]) -> list[Any]:
        """All in one transaction; if it fails, nothing of it is there and everyone is told."""
        try:
            database.execute("BEGIN IMMEDIATE")
            results = [(done, work(database), None) for work, done in batch]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # told to all who wait
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            self._problem = f"the journal {self._path} cannot be written: {error}"
            return [(done, None, Unavailable(self._problem)) for _, done in batch]
        self._problem = None
        return results


def _resolve(results: Sequence[tuple["asyncio.Future[Any]", Any, BaseException | None]]) -> None:
    for done, value, error in results:
        if done.done():
            continue
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _prepared(path)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise WrongSetting(
                f"another node agent is using {path}; stop it, or give this one a MESH_DATA_DIR of its own"
            ) from error
        raise Unavailable(f"the journal {path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.unreadable")
        path.replace(aside)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        log.error("journal_unreadable", path=str(path), kept_as=str(aside), reason=str(error))
        return _prepared(path)


def _prepared(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
        # Takes the lock now, and with it the right to be the only one.
        database.execute("BEGIN IMMEDIATE")
        database.execute("PRAGMA user_version = 1")
        database.execute("COMMIT")
    except sqlite3.Error:
        database.close()
        raise
    return database


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
