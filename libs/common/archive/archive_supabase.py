"""The archive in Supabase, through its own client over PostgREST."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx

from libs.common.archive import cursors, questions_supabase
from libs.common.archive.checks import (
    checked_age,
    checked_filters,
    checked_key,
    checked_limit,
    checked_order,
    checked_rows,
)
from libs.common.archive.tables import MOST_ROWS, Column, Equal, Filter, Kind, Order, Page, Row, Schema, Table
from libs.common.errors import Malformed, MeshError, Unavailable
from supabase import AsyncClient, AsyncClientOptions, PostgrestAPIError, acreate_client

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 5.0
IDLE_SECONDS = 20.0
CONNECTIONS = 10


PROBE = Table(name="archive_probe", owner="archive", key=("name",), columns=(Column(name="name", kind=Kind.TEXT),))
"""A table of the common migrations that stays empty: to ask whether the database answers."""


class SupabaseArchive:
    """One client, and so one set of connections, for the whole process.

    It is our own HTTP client: the default one speaks HTTP/2, whose connections the servers end in the middle of a
    request. Nothing signs in on it, which would put a user in the place of the service key. The client's own retries
    are switched off: they would only repeat reads, and hold up the one who asked.
    """

    def __init__(self, url: str, service_key: str, http: Callable[[], httpx.AsyncClient] | None = None) -> None:
        """`http` makes the connections, where other ones than ours are wanted."""
        self._url = url
        self._key = service_key
        self._client: AsyncClient | None = None
        self._http: httpx.AsyncClient | None = None
        self._make_http = http or _http_client
        self._opening = asyncio.Lock()
        self._problem: str | None = None

    async def prepare(self, schema: Schema) -> None:
        """PostgREST cannot make tables: only look whether the migrations were applied."""
        for table in schema.tables:
            await self._look_at(table)

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        checked = [questions_supabase.written(row) for row in checked_rows(table, rows)]
        if not checked:
            return
        async with self._answered(table) as client:
            request = client.table(table.name).upsert(
                checked,
                on_conflict=",".join(table.key),
                returning="minimal",  # type: ignore[arg-type]
            )
            await request.execute()

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
        found: list[dict[str, Any]] = []
        for part in questions_supabase.short_enough(conditions):
            found.extend(await self._rows(table, part, columns, descending, last, most + 1))
        found.sort(key=lambda row: tuple(row[name] for name in columns), reverse=descending)
        return cursors.page_of(table, found, most, columns, descending)

    async def get(self, table: Table, key: Row) -> Row | None:
        conditions = [Equal(name, value) for name, value in checked_key(table, key).items()]
        rows = await self._rows(table, conditions, table.key, False, None, 1)
        return rows[0] if rows else None

    async def delete_older_than(self, table: Table, column: str, moment: datetime) -> int:
        before = questions_supabase.plain(checked_age(table, column, moment))
        async with self._answered(table) as client:
            request = client.table(table.name).delete(count="exact", returning="minimal")  # type: ignore[arg-type]
            return (await request.lt(column, before).execute()).count or 0

    async def ping(self) -> None:
        await self._look_at(PROBE)

    def problem(self) -> str | None:
        return self._problem

    async def close(self) -> None:
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _look_at(self, table: Table) -> None:
        async with self._answered(table) as client:
            await client.table(table.name).select(*table.names).limit(1).retry(False).execute()

    async def _rows(
        self,
        table: Table,
        filters: Sequence[Filter],
        columns: tuple[str, ...],
        descending: bool,
        last: tuple[Any, ...] | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        async with self._answered(table) as client:
            request = client.table(table.name).select(*table.names)
            for condition in filters:
                for column, operator, value in questions_supabase.conditions(condition):
                    request = request.filter(column, operator, value)
            if last is not None:
                request.request.params = request.request.params.add(
                    "or", questions_supabase.beyond(columns, last, descending)
                )
            for name in columns:
                request = request.order(name, desc=descending)
            answer = await request.limit(limit).retry(False).execute()
        rows: Any = answer.data
        return [questions_supabase.read(table, row) for row in rows]

    @asynccontextmanager
    async def _answered(self, table: Table) -> AsyncIterator[AsyncClient]:
        """The client; what goes wrong with it becomes one of our errors, and the problem."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                yield await self._connected()
        except PostgrestAPIError as error:
            ours = questions_supabase.refusal(table.name, error.code, error.message)
            if isinstance(ours, Unavailable):
                self._problem = ours.message
            raise ours from error
        except MeshError as error:
            self._problem = error.message
            raise
        except httpx.InvalidURL as error:
            raise Malformed("what is asked for is too long to be asked for") from error
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            self._problem = f"the archive does not answer: {str(error) or type(error).__name__}"
            raise Unavailable(self._problem) from error
        self._problem = None

    async def _connected(self) -> AsyncClient:
        async with self._opening:
            if self._client is None:
                self._http = self._make_http()
                options = AsyncClientOptions(httpx_client=self._http, auto_refresh_token=False, persist_session=False)
                self._client = await acreate_client(self._url, self._key, options)
            return self._client


def _http_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(
        http2=False,
        timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS),
    )
