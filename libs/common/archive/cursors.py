"""Where a page ended, as a string that only we read. Pure."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from libs.common.archive.checks import checked_filters, moment_of, moment_text
from libs.common.archive.tables import Equal, Kind, Page, Row, Table
from libs.common.errors import Malformed


def page_of(table: Table, rows: Sequence[Row], limit: int, columns: tuple[str, ...], descending: bool) -> Page:
    """A page from one row more than it may have, if there are so many."""
    shown = tuple(rows[:limit])
    cursor = _written(table, shown[-1], columns, descending) if len(rows) > limit else None
    return Page(rows=shown, cursor=cursor)


def after(table: Table, cursor: str | None, columns: tuple[str, ...], descending: bool) -> tuple[Any, ...] | None:
    """The values of `columns` in the last row that was seen. Raises `Malformed` for a cursor of another question."""
    if cursor is None:
        return None
    try:
        name, order, downwards, values = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        if [name, order, downwards] != [table.name, list(columns), descending] or len(values) != len(columns):
            raise ValueError("another question's")
        pairs = zip(columns, values, strict=True)
        wanted = checked_filters(table, [Equal(column, _read(table, column, value)) for column, value in pairs])
    except (ValueError, TypeError, RecursionError, Malformed) as error:
        raise Malformed("the cursor is not one that this question was answered with") from error
    return tuple(each.value for each in wanted if isinstance(each, Equal))


def _written(table: Table, row: Row, columns: tuple[str, ...], descending: bool) -> str:
    values = [row[column] for column in columns]
    plain = [moment_text(value) if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps([table.name, columns, descending, plain]).encode()).decode()


def _read(table: Table, name: str, value: Any) -> Any:
    column = table.column(name)
    return moment_of(value) if column is not None and column.kind is Kind.TIMESTAMP else value
