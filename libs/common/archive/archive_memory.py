"""The archive in memory: for tests, and for whoever wants none on disk. Twin of the others, by the same tests."""

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from libs.common.archive import cursors
from libs.common.archive.checks import (
    checked_age,
    checked_filters,
    checked_key,
    checked_limit,
    checked_order,
    checked_rows,
)
from libs.common.archive.tables import MOST_ROWS, Equal, Filter, In, Order, Page, Row, Schema, Table
from libs.common.errors import Unavailable

Rows = dict[tuple[Any, ...], dict[str, Any]]


class MemoryArchive:
    def __init__(self) -> None:
        self._tables: dict[str, Rows] = {}
        self._away: str | None = None

    def go_away(self, reason: str = "the archive was told to be away") -> None:
        """From now on everything raises `Unavailable`, until `come_back`."""
        self._away = reason

    def come_back(self) -> None:
        self._away = None

    async def prepare(self, schema: Schema) -> None:
        await self.ping()
        for table in schema.tables:
            self._tables.setdefault(table.name, {})

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        checked = checked_rows(table, rows)
        kept = self._rows(table)
        for row in checked:
            old = kept.get(table.key_of(row))
            if old is None or table.replaces(row, old):
                kept[table.key_of(row)] = row

    async def page(
        self,
        table: Table,
        filters: Sequence[Filter] = (),
        *,
        order: Order | None = None,
        limit: int = MOST_ROWS,
        cursor: str | None = None,
    ) -> Page:
        conditions = checked_filters(table, filters)
        columns, descending = checked_order(table, order)
        last = cursors.after(table, cursor, columns, descending)

        def place(row: Row) -> tuple[Any, ...]:
            return tuple(row[name] for name in columns)

        found = [row for row in self._rows(table).values() if all(_holds(each, row) for each in conditions)]
        if last is not None:
            found = [row for row in found if (place(row) < last if descending else place(row) > last)]
        found.sort(key=place, reverse=descending)
        rows = deepcopy(found[: checked_limit(limit) + 1])
        return cursors.page_of(table, rows, limit, columns, descending)

    async def get(self, table: Table, key: Row) -> Row | None:
        return deepcopy(self._rows(table).get(table.key_of(checked_key(table, key))))

    async def delete_older_than(self, table: Table, column: str, moment: datetime) -> int:
        before = checked_age(table, column, moment)
        kept = self._rows(table)
        old = [key for key, row in kept.items() if row[column] is not None and row[column] < before]
        for key in old:
            del kept[key]
        return len(old)

    async def ping(self) -> None:
        if self._away is not None:
            raise Unavailable(self._away)

    def problem(self) -> str | None:
        return self._away

    async def close(self) -> None:
        self._tables.clear()

    def _rows(self, table: Table) -> Rows:
        if self._away is not None:
            raise Unavailable(self._away)
        if table.name not in self._tables:
            raise Unavailable(f"the archive has no table {table.name}")
        return self._tables[table.name]


def _holds(condition: Filter, row: Row) -> bool:
    value = row[condition.column]
    if value is None:
        return False
    if isinstance(condition, Equal):
        return bool(value == condition.value)
    if isinstance(condition, In):
        return value in condition.values
    return bool(
        (condition.at_least is None or value >= condition.at_least)
        and (condition.below is None or value < condition.below)
    )
