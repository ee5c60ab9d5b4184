"""Applies migrations to an SQLite file, each in a transaction of its own that locks out everybody else."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from libs.common.archive.migrations import checksum, outstanding
from libs.common.archive.tables import Migration
from libs.common.errors import Unavailable

LOCK_SECONDS = 10.0
AGAIN_SECONDS = 0.02
APPLIED = """
create table if not exists archive_migrations (
    service text not null, number integer not null, name text not null, checksum text not null,
    applied_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    primary key (service, number)
)
"""


def migrate(path: Path, migrations: Sequence[Migration]) -> None:
    """Blocks: run it in a thread. Raises `Unavailable`, `Conflict`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS)) as database:
            _enter_wal(database)
            while _apply_next(database, migrations):
                continue
    except (sqlite3.Error, OSError) as error:
        raise Unavailable(f"the archive {path} cannot be prepared: {error}") from error


def _enter_wal(database: sqlite3.Connection) -> None:
    """The file keeps this mode. SQLite does not wait its lock time for the change: somebody may be making it now."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            database.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(AGAIN_SECONDS)


def _apply_next(database: sqlite3.Connection, migrations: Sequence[Migration]) -> bool:
    """Apply the first one that is outstanding. Looking and applying are one transaction: two may do this at once."""
    database.execute("begin immediate")
    try:
        database.execute(APPLIED)
        rows = database.execute("select service, number, checksum from archive_migrations").fetchall()
        waiting = outstanding(migrations, {(service, number): text for service, number, text in rows}, "sqlite")
        for migration, text in waiting[:1]:
            for statement in statements(text):
                database.execute(statement)
            database.execute(
                "insert into archive_migrations (service, number, name, checksum) values (?, ?, ?, ?)",
                (migration.service, migration.number, migration.name, checksum(text)),
            )
        database.execute("commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a failed commit may have ended the transaction already
            database.execute("rollback")
        raise
    return len(waiting) > 1


def statements(text: str) -> Iterator[str]:
    """One at a time: `executescript` would commit before it begins. Each ends at the end of a line."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
