"""A journal in SQLite: one thread, and one sync for all that waits at the moment.

What is written outlives the process; what is synced, a power failure too. SQLite is told to write its log only
(`synchronous = NORMAL`: it still syncs around each checkpoint); the log is synced here, so that who needs no more than
the former need not wait for the latter.

The thread's share of a small change is mostly waiting for its turn with the interpreter. So such a change may be
written by whoever asks for it, while the thread has nothing to do with the database; what takes as long as the disk
does, syncs and checkpoints, is the thread's alone.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from libs.common.errors import Unavailable, WrongSetting

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""Runs inside a transaction that others may share."""
Unreadable = Callable[[Path, sqlite3.Error], None]
"""What becomes of a file that is no journal: raise, or take it away so that a new one is made."""
Then = Callable[[BaseException | None], None]
"""Runs on the event loop once it is there (None) or known not to be, also when nobody waits for it any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    work: Work[Any]
    done: "asyncio.Future[Any]"
    then: Then | None
    synced: bool
    written: bool = False
    unsynced: bool = False
    value: Any = None
    error: Exception | None = None


MOST_AT_ONCE = 1000
WRITES_PER_CHECKPOINT = 200
"""Of those that the thread does not write: so few that SQLite sees no reason for a checkpoint in the midst of them."""
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
        self._database: sqlite3.Connection | None = None
        self._handed = self._taken = 0
        self._since_checkpoint = 0
        self._problem: str | None = "the journal is not open yet"
        self._unsynced: str | None = None

    def problem(self) -> str | None:
        """Why it takes nothing at the moment."""
        return self._problem

    async def open(self) -> None:
        """Raises `WrongSetting` when another process has it, `Unavailable`, and what `unreadable` raises."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[sqlite3.Connection] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, opened), name=self._path.stem, daemon=True)
        self._thread.start()
        self._database = await opened
        self._problem = None

    async def close(self) -> None:
        """Once all that waits is on disk."""
        thread, self._thread = self._thread, None
        self._database = None
        if thread is None:
            return
        self._waiting.put(None)
        while thread.is_alive():  # noqa: ASYNC110  # a thread tells no event loop that it ended
            await asyncio.sleep(0.005)

    async def do(self, work: Work[T]) -> T:
        """Returns when it is on disk. Raises `Unavailable`: then nothing of it is there, unless the disk failed at the
        sync."""
        return await self.begin(work)

    def begin(self, work: Work[T], then: Then | None = None, *, synced: bool = True) -> "asyncio.Future[T]":
        """As `do`, or with `synced` false done when it is written: it is synced with the next that has to be.

        Who is cancelled while waiting cancels nothing: `then` is told what became of it all the same.
        """
        waiting = self._begun(work, then, synced=synced)
        self._hand_over(waiting)
        return waiting.done

    def at_once(self, work: Work[T], then: Then | None = None, *, synced: bool = True) -> "asyncio.Future[T]":
        """As `begin`, for a change of some rows: written in this step unless others wait to be written before it.

        What need not be synced is then done already, and `then` was told.
        """
        waiting = self._begun(work, then, synced=synced)
        database = self._database
        # While nothing is handed to the thread, or all that was is taken care of, the thread lets the database alone.
        if database is None or self._handed != self._taken or self._since_checkpoint >= WRITES_PER_CHECKPOINT:
            self._hand_over(waiting)
            return waiting.done
        self._since_checkpoint += 1
        self._write(database, [waiting])
        if waiting.unsynced:
            self._waiting.put(waiting)
        else:
            _resolve([waiting])
        return waiting.done

    def _begun(self, work: Work[T], then: Then | None, *, synced: bool) -> _Waiting:
        """Raises `Unavailable`."""
        if self._thread is None:
            raise Unavailable("the journal is closed")
        return _Waiting(work, asyncio.get_running_loop().create_future(), then, synced)

    def _hand_over(self, waiting: _Waiting) -> None:
        self._handed += 1
        self._waiting.put(waiting)

    def _run(self, loop: asyncio.AbstractEventLoop, opened: "asyncio.Future[sqlite3.Connection]") -> None:
        """The journal's own thread."""
        try:
            database = self._open()
        except Exception as error:  # noqa: BLE001  # told to the one who waits
            loop.call_soon_threadsafe(_settle, opened, None, error)
            return
        with contextlib.closing(database), self._log_file() as log:
            loop.call_soon_threadsafe(_settle, opened, database, None)
            while batch := self._next_batch():
                handed = [each for each in batch if not each.written]
                if handed:
                    self._write(database, handed)
                    self._tell(loop, [each for each in handed if not each.unsynced])
                self._sync(loop, log, [each for each in batch if each.unsynced])
                if handed:
                    self._checkpoint(database)
                    self._taken += len(handed)

    def _tell(self, loop: asyncio.AbstractEventLoop, done: Sequence[_Waiting]) -> None:
        if done:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, done)

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

    def _write(self, database: sqlite3.Connection, batch: Sequence[_Waiting]) -> None:
        """All in one transaction; if it fails, nothing of it is there and everyone is told."""
        changes = database.total_changes
        try:
            if self._unsynced is not None:
                raise OSError(self._unsynced)
            database.execute("BEGIN IMMEDIATE")
            for each in batch:
                each.value = each.work(database)
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # told to all who wait
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            self._failed(batch, str(error))
            return
        self._problem = None
        changed = database.total_changes > changes
        for each in batch:
            each.written, each.unsynced = True, each.synced and changed

    def _sync(self, loop: asyncio.AbstractEventLoop, log: int, batch: Sequence[_Waiting]) -> None:
        """A disk that failed at this may have dropped what was written, and says so once: nothing is taken after, and
        what was written meanwhile is not believed either."""
        if batch and self._unsynced is None:
            try:
                os.fdatasync(log)
            except OSError as error:
                self._unsynced = f"the disk failed ({error}); see to it, then restart this service"
        if self._unsynced is not None:
            self._failed(batch, self._unsynced)
        self._tell(loop, batch)

    def _checkpoint(self, database: sqlite3.Connection) -> None:
        """Behind many that were written at once. If it fails the log grows on, and SQLite tries again by itself."""
        if self._since_checkpoint >= WRITES_PER_CHECKPOINT:
            with contextlib.suppress(sqlite3.Error):
                database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._since_checkpoint = 0

    def _failed(self, batch: Sequence[_Waiting], reason: str) -> None:
        self._problem = f"the journal {self._path} cannot be written: {reason}"
        for each in batch:
            each.error = Unavailable(self._problem)

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[int]:
        log = os.open(f"{self._path}-wal", os.O_RDWR)
        try:
            yield log
        finally:
            os.close(log)

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
            database.execute("PRAGMA synchronous = NORMAL")
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


def _resolve(batch: Sequence[_Waiting]) -> None:
    for each in batch:
        if each.then is not None:
            each.then(each.error)
        _settle(each.done, each.value, each.error)


def _settle(done: "asyncio.Future[Any]", value: object, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(value)
