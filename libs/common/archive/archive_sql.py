"""The archive in SQLite (the default) and in PostgreSQL, through SQLAlchemy Core."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from libs.common.archive import cursors, migrate_postgresql, migrate_sqlite, sql_tables
from libs.common.archive.checks import (
    checked_age,
    checked_filters,
    checked_key,
    checked_limit,
    checked_order,
    checked_rows,
)
from libs.common.archive.tables import MOST_ROWS, Filter, Order, Page, Row, Schema, Table
from libs.common.errors import Malformed, MeshError, Unavailable

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 5.0
LOCK_SECONDS = 5.0
CONNECTIONS = 3
PREPARE_SECONDS = 120.0
REFUSED = ("21", "22", "23", "54")
"""Classes of PostgreSQL's errors: what was to be written is wrong, or larger than it can be."""


class SqlArchive:
    """Made by `sqlite_archive` and `postgresql_archive`.

    `file` is SQLite's, None for PostgreSQL. `errors`: what the driver raises beside SQLAlchemy's.
    """

    def __init__(self, engine: AsyncEngine, *, file: Path | None, errors: tuple[type[Exception], ...] = ()) -> None:
        self._engine = engine
        self._file = file
        self._errors: tuple[type[Exception], ...] = (exc.SQLAlchemyError, OSError, TimeoutError, *errors)
        self._tables: dict[Table, sa.Table] = {}
        self._upserts: dict[Table, sa.Executable] = {}
        self._problem: str | None = None

    async def prepare(self, schema: Schema) -> None:
        async with self._answered(PREPARE_SECONDS):
            if self._file is not None:
                await asyncio.to_thread(migrate_sqlite.migrate, self._file, schema.migrations)
                return
            async with self._engine.connect() as connection:
                bare = await connection.get_raw_connection()
                await migrate_postgresql.migrate(bare.driver_connection, schema.migrations)

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        checked = checked_rows(table, rows)
        if not checked:
            return
        async with self._transaction() as connection:
            await connection.execute(self._upsert(table), checked)

    async def page(
        self,
        table: Table,
        filters: Sequence[Filter] = (),
        *,
        order: Order | None = None,
        limit: int = MOST_ROWS,
        cursor: str | None = None,
    ) -> Page:
        conditions, most = checked_filters(table, filters), checked_limit(limit)
        columns, descending = checked_order(table, order)
        last = cursors.after(table, cursor, columns, descending)
        statement = sql_tables.page(self._known(table), conditions, columns, descending, last, most + 1)
        async with self._transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return cursors.page_of(table, [dict(row) for row in rows], most, columns, descending)

    async def get(self, table: Table, key: Row) -> Row | None:
        statement = sql_tables.by_key(self._known(table), checked_key(table, key))
        async with self._transaction() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else dict(row)

    async def delete_older_than(self, table: Table, column: str, moment: datetime) -> int:
        statement = sql_tables.delete_older(self._known(table), column, checked_age(table, column, moment))
        async with self._transaction() as connection:
            return (await connection.execute(statement)).rowcount

    async def ping(self) -> None:
        async with self._transaction() as connection:
            await connection.execute(sa.text("select 1"))

    def problem(self) -> str | None:
        return self._problem

    async def close(self) -> None:
        await self._engine.dispose()

    def _known(self, table: Table) -> sa.Table:
        if table not in self._tables:
            self._tables[table] = sql_tables.sql_table(table)
        return self._tables[table]

    def _upsert(self, table: Table) -> sa.Executable:
        if table not in self._upserts:
            self._upserts[table] = sql_tables.upsert(table, self._known(table), self._engine.dialect.name)
        return self._upserts[table]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._answered(ANSWER_SECONDS), self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def _answered(self, seconds: float) -> AsyncIterator[None]:
        """Within this time; what goes wrong becomes one of our errors, and the problem."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except Malformed:
            raise
        except MeshError as error:
            self._problem = error.message
            raise
        except (exc.IntegrityError, exc.DataError) as error:
            raise Malformed(f"the archive refuses this: {_first_line(error)}") from error
        except self._errors as error:
            if _state(error).startswith(REFUSED):
                raise Malformed(f"the archive refuses this: {_first_line(error)}") from error
            self._problem = f"the archive does not answer: {_first_line(error)}"
            raise Unavailable(self._problem) from error
        self._problem = None


def sqlite_archive(file: Path, *, lock_seconds: float = LOCK_SECONDS) -> SqlArchive:
    """`lock_seconds`: how long to wait for other processes that write."""
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(file)),
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=ANSWER_SECONDS,
        connect_args={"timeout": lock_seconds},
        json_serializer=_json_text,
    )
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return SqlArchive(engine, file=file)


def postgresql_archive(url: str) -> SqlArchive:
    """`url` is `postgresql://…`, with what asyncpg understands after the `?`."""
    import asyncpg  # only who uses PostgreSQL pays for it

    engine = create_async_engine(
        sa.make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=ANSWER_SECONDS,
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_SECONDS},
        json_serializer=_json_text,
    )
    return SqlArchive(engine, file=None, errors=(asyncpg.PostgresError, asyncpg.InterfaceError))


def _json_text(value: Any) -> str:
    return to_json(value).decode()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # FULL: what is told to be committed is on disk, for the log is trimmed by it.
    cursor = connection.cursor()
    cursor.execute("pragma synchronous = full")
    cursor.close()


def _state(error: BaseException) -> str:
    """PostgreSQL's five characters; of what SQLAlchemy does not sort, the class of the error is in the first two."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip().splitlines()
    return text[0] if text else type(cause).__name__
