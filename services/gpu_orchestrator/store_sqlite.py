"""The journal in SQLite: one thread, and one fsync for all that waits at the moment."""

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from libs.common.contracts.gpu_orchestrator import ReservationState
from libs.common.errors import Unavailable, WrongSetting
from services.gpu_orchestrator.machine import OPEN, Held

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Waiting = tuple[Work[Any], "asyncio.Future[Any]"]
Done = tuple["asyncio.Future[Any]", Any, BaseException | None]

MOST_AT_ONCE = 1000
LOCK_SECONDS = 5.0
KEPT_ENDED = 1000
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
    """See `Journal`. The file is locked for as long as it is open: two writers would give the same memory twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: SimpleQueue[Waiting | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._problem: str | None = "the journal is not open yet"

    def problem(self) -> str | None:
        return self._problem

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, opened), name="gpu-journal", daemon=True)
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

    async def write(self, changed: Sequence[Held]) -> None:
        rows = [(each.token, each.reservation_id, int(each.is_open), _text(each)) for each in changed]

        def work(database: sqlite3.Connection) -> None:
            database.executemany(_WRITE, rows)
            if any(each.state not in OPEN for each in changed):
                database.execute(_FORGET, (KEPT_ENDED,))

        await self._do(work)

    async def read(self) -> tuple[Sequence[Held], int]:
        def work(database: sqlite3.Connection) -> tuple[Sequence[Held], int]:
            bodies = database.execute("SELECT body FROM reservations ORDER BY token").fetchall()
            last = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reservations'").fetchone()
            return [_held(body) for (body,) in bodies], last[0] if last else 0

        return await self._do(work)

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
            while batch := self._next_batch():
                results = self._commit(database, batch)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, results)

    def _next_batch(self) -> list[Waiting]:
        """Empty: it is to be closed."""
        batch: list[Waiting] = []
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

    def _commit(self, database: sqlite3.Connection, batch: Sequence[Waiting]) -> list[Done]:
        """All in one transaction; if it fails, nothing of it is there and everyone is told."""
        try:
            database.execute("BEGIN IMMEDIATE")
            results: list[Done] = [(done, work(database), None) for work, done in batch]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # told to all who wait
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            self._problem = f"the journal {self._path} cannot be used: {error}"
            return [(done, None, Unavailable(self._problem)) for _, done in batch]
        self._problem = None
        return results


def _resolve(results: Sequence[Done]) -> None:
    for done, value, error in results:
        if done.done():
            continue
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
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
    except sqlite3.Error as error:
        database.close()
        if "locked" in str(error):
            raise WrongSetting(
                f"another GPU orchestrator is using {path}; stop it, or give this one a MESH_DATA_DIR of its own"
            ) from error
        raise WrongSetting(
            f"the journal of reservations {path} cannot be read ({error}); end what runs on the GPUs, then remove it"
        ) from error
    return database


def _text(held: Held) -> str:
    return json.dumps(asdict(held), default=str)


def _held(body: str) -> Held:
    told = json.loads(body)
    told["state"] = ReservationState(told["state"])
    told["gpu_uuids"] = tuple(told["gpu_uuids"])
    for name in ("reserved_at", "ended_at"):
        told[name] = datetime.fromisoformat(told[name]) if told[name] else None
    return Held(**told)
