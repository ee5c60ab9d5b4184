"""A journal in SQLite: one thread, and one fsync for all that waits at the moment."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from libs.common.errors import Unavailable, WrongSetting

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""Runs on the journal's thread, inside a transaction that others may share."""
Unreadable = Callable[[Path, sqlite3.Error], None]
"""What becomes of a file that is no journal: raise, or take it away so that a new one is made."""
Then = Callable[[BaseException | None], None]
"""Runs on the event loop once it is on disk (None) or known not to be, also when nobody waits for it any more."""
AtOnce = Callable[[T], None]
"""Runs on the journal's thread with what the work returned, the moment that is on disk. Must not raise."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: Work[Any]
    done: "asyncio.Future[Any]"
    then: Then | None
    at_once: AtOnce[Any] | None


Done = tuple[_Waiting, Any, BaseException | None]

MOST_AT_ONCE = 1000
LOCK_SECONDS = 5.0
ROOM_BYTES = 4_000_000
"""SQLite's log is written into the database every 1000 pages of 4 KiB."""


class SqliteFile:
    """Locked for as long as it is open: two writers would each believe what the other does not know.

    `owner` is who else may hold it, in words. `schema` is SQL that may run again at every start.
    """

    def __init__(
        self, path: Path, *, schema: str, owner: str, unreadable: Unreadable, lock_seconds: float = LOCK_SECONDS
    ) -> None:
        self._path = path
        self._schema = schema
        self._owner = owner
        self._unreadable = unreadable
        self._lock_seconds = lock_seconds
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._problem: str | None = "the journal is not open yet"

    def problem(self) -> str | None:
        """Why it takes nothing at the moment."""
        return self._problem

    async def open(self) -> None:
        """Raises `WrongSetting` when another process has it, `Unavailable`, and what `unreadable` raises."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, opened), name=self._path.stem, daemon=True)
        self._thread.start()
        await opened
        self._problem = None

    async def close(self) -> None:
        """Once all that waits is on disk."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._waiting.put(None)
        while thread.is_alive():  # noqa: ASYNC110  # a thread tells no event loop that it ended
            await asyncio.sleep(0.005)

    async def do(self, work: Work[T], at_once: AtOnce[T] | None = None) -> T:
        """Returns when it is on disk, after `at_once`. Raises `Unavailable`: then nothing of it is there."""
        return await self.begin(work, at_once=at_once)

    def begin(self, work: Work[T], then: Then | None = None, at_once: AtOnce[T] | None = None) -> "asyncio.Future[T]":
        """As `do`. Who is cancelled while waiting cancels nothing: `then` is told what became of it all the same."""
        if self._thread is None:
            raise Unavailable("the journal is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Waiting(work, done, then, at_once))
        return done

    def _run(self, loop: asyncio.AbstractEventLoop, opened: "asyncio.Future[None]") -> None:
        """The journal's own thread."""
        try:
            database = self._open()
        except Exception as error:  # noqa: BLE001  # told to the one who waits
            loop.call_soon_threadsafe(_settle, opened, None, error)
            return
        loop.call_soon_threadsafe(_settle, opened, None, None)
        with contextlib.closing(database):
            while batch := self._next_batch():
                results = self._commit(database, batch)
                for waiting, value, failed in results:
                    if failed is None and waiting.at_once is not None:
                        waiting.at_once(value)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, results)

    def _next_batch(self) -> list[_Waiting]:
        """Empty: it is to be closed."""
        batch: list[_Waiting] = []
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

    def _commit(self, database: sqlite3.Connection, batch: Sequence[_Waiting]) -> list[Done]:
        """All in one transaction; if it fails, nothing of it is there and everyone is told."""
        try:
            database.execute("BEGIN IMMEDIATE")
            results: list[Done] = [(each, each.work(database), None) for each in batch]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # told to all who wait
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            self._problem = f"the journal {self._path} cannot be written: {error}"
            return [(each, None, Unavailable(self._problem)) for each in batch]
        self._problem = None
        return results

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._prepared()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise WrongSetting(
                    f"another {self._owner} is using {self._path}; stop it, or give this one a MESH_DATA_DIR of its own"
                ) from error
            raise Unavailable(f"the journal {self._path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            self._unreadable(self._path, error)
            return self._prepared()

    def _prepared(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path, isolation_level=None, timeout=self._lock_seconds, check_same_thread=False
        )
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(self._schema)
            _make_room(database)
            # Takes the lock now, and with it the right to be the only one.
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA user_version = 1")
            database.execute("COMMIT")
        except sqlite3.Error:
            database.close()
            raise
        return database


def _make_room(database: sqlite3.Connection) -> None:
    """Write the write-ahead log once to the length that it has between two checkpoints, and begin it anew.

    A sync after a write that made the file longer waits for the file system's own journal too: it takes twice as long.
    """
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE room (filled BLOB)")
    database.execute("INSERT INTO room VALUES (zeroblob(?))", (ROOM_BYTES,))
    database.execute("DROP TABLE room")
    database.execute("COMMIT")
    database.execute("PRAGMA wal_checkpoint(RESTART)")


def _resolve(results: Sequence[Done]) -> None:
    for each, value, error in results:
        if each.then is not None:
            each.then(error)
        _settle(each.done, value, error)


def _settle(done: "asyncio.Future[Any]", value: object, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(value)
