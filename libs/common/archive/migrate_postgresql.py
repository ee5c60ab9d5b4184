"""Applies migrations to PostgreSQL, each in a transaction of its own, one process at a time."""

from collections.abc import Sequence
from typing import Any

from libs.common.archive.migrations import checksum, outstanding
from libs.common.archive.tables import Migration

LOCK = 7_164_501_958_302_775_741
"""Any number will do, as long as all who migrate take the same."""

APPLIED = """
create table if not exists archive_migrations (
    service text not null, number integer not null, name text not null, checksum text not null,
    applied_at timestamptz not null default now(),
    primary key (service, number)
);
alter table archive_migrations enable row level security;
"""


async def migrate(connection: Any, migrations: Sequence[Migration]) -> None:
    """`connection` is one of asyncpg, whose errors come out as they are. Raises `Conflict`."""
    while await _apply_next(connection, migrations):
        continue


async def _apply_next(connection: Any, migrations: Sequence[Migration]) -> bool:
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
        if await connection.fetchval("select to_regclass('archive_migrations')") is None:
            await connection.execute(APPLIED)
        rows = await connection.fetch("select service, number, checksum from archive_migrations")
        applied = {(row["service"], row["number"]): row["checksum"] for row in rows}
        waiting = outstanding(migrations, applied, "postgresql")
        for migration, text in waiting[:1]:
            await connection.execute(text)
            await connection.execute(
                "insert into archive_migrations (service, number, name, checksum) values ($1, $2, $3, $4)",
                migration.service,
                migration.number,
                migration.name,
                checksum(text),
            )
    return len(waiting) > 1
