"""What may be written and asked, decided before a database sees it, so that all of them agree. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from libs.common.archive.tables import MOST_ROWS, MOST_VALUES, Column, Equal, Filter, In, Kind, Order, Range, Row, Table
from libs.common.errors import Malformed

REPLACEMENT = "\ufffd"
INTEGER_LIMIT = 2**63
EXPONENT_FROM = 1e16
"""From here on Python writes floats as `1e+16`, which PostgreSQL's JSON gives back as a whole number."""


class CheckedRow(dict[str, Any]):
    """A row that was found fit for its table: whoever gets it need not look again. Not to be changed."""

    def __init__(self, table: Table, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.table = table


def checked_rows(table: Table, rows: Sequence[Row]) -> list[CheckedRow]:
    """Rows with every column, fit for every back end.

    A nullable column that is missing becomes None. What PostgreSQL cannot keep in text (U+0000, lone surrogates) is
    replaced by U+FFFD. Raises `Malformed`: unknown or missing columns, wrong types, the same key twice, too many rows.
    """
    if len(rows) > MOST_ROWS:
        raise Malformed(f"{len(rows)} rows for {table.name} at once; {MOST_ROWS} are the most")
    checked = [checked_row(table, row) for row in rows]
    if len({table.key_of(row) for row in checked}) < len(checked):
        raise Malformed(f"a batch for {table.name} has the same key twice")
    return checked


def checked_key(table: Table, key: Row) -> dict[str, Any]:
    """Raises `Malformed` unless `key` has exactly the key's columns."""
    if set(key) != set(table.key):
        raise Malformed(f"the key of {table.name} is {', '.join(table.key)}, not {', '.join(sorted(key))}")
    return {name: _checked_value(table, _column(table, name), key[name]) for name in table.key}


def checked_filters(table: Table, filters: Sequence[Filter]) -> list[Filter]:
    return [_checked_filter(table, each) for each in filters]


def checked_order(table: Table, order: Order | None) -> tuple[tuple[str, ...], bool]:
    """The columns to order by, the key last, and whether downwards. Raises `Malformed`."""
    if order is None:
        return table.key, False
    column = _column(table, order.column)
    if order.column not in {columns[0] for columns in (table.key, *table.indexes)} or column.nullable:
        raise Malformed(f"{table.name} cannot be ordered by {order.column}: it leads no index, or may be null")
    return (order.column, *(name for name in table.key if name != order.column)), order.descending


def checked_limit(limit: int) -> int:
    if not 1 <= limit <= MOST_ROWS:
        raise Malformed(f"a page has 1 to {MOST_ROWS} rows, not {limit}")
    return limit


def checked_age(table: Table, column: str, moment: datetime) -> datetime:
    """Raises `Malformed` unless `column` is a timestamp and `moment` knows its time zone."""
    found = _column(table, column)
    if found.kind is not Kind.TIMESTAMP:
        raise Malformed(f"{table.name}.{column} is no timestamp")
    checked = _checked_value(table, found, moment)
    if not isinstance(checked, datetime):
        raise Malformed(f"rows of {table.name} older than nothing cannot be deleted")
    return checked


def moment_text(moment: datetime) -> str:
    """UTC, always of the same length, so that it is ordered like the moment itself."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def moment_of(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _column(table: Table, name: str) -> Column:
    column = table.column(name)
    if column is None:
        raise Malformed(f"{table.name} has no column {name}")
    return column


def checked_row(table: Table, row: Row) -> CheckedRow:
    """One row, as `checked_rows` says."""
    if isinstance(row, CheckedRow) and row.table is table:
        return row
    values = {column.name: _checked_value(table, column, row.get(column.name)) for column in table.columns}
    if unknown := row.keys() - values.keys():
        raise Malformed(f"{table.name} has no column {', '.join(sorted(unknown))}")
    return CheckedRow(table, values)


def _checked_value(table: Table, column: Column, value: Any) -> Any:
    if value is None:
        if column.nullable:
            return None
        raise Malformed(f"{table.name}.{column.name} may not be null")
    try:
        checked = _CHECKS[column.kind](value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Malformed(f"{table.name}.{column.name}: {error}") from error
    if column.name in table.key and checked != value:
        raise Malformed(f"{table.name}.{column.name} is part of the key and has characters that cannot be kept")
    return checked


def _checked_filter(table: Table, condition: Filter) -> Filter:
    column = _column(table, condition.column)
    if column.kind is Kind.JSON:
        raise Malformed(f"{table.name}.{column.name} is JSON and cannot be asked for")
    if isinstance(condition, Equal):
        return Equal(condition.column, _wanted(table, column, condition.value))
    if isinstance(condition, In):
        if not 1 <= len(condition.values) <= MOST_VALUES:
            raise Malformed(f"{len(condition.values)} values for {column.name}; 1 to {MOST_VALUES} are allowed")
        values = (_wanted(table, column, value) for value in condition.values)
        return In(condition.column, tuple(dict.fromkeys(values)))
    if condition.at_least is None and condition.below is None:
        raise Malformed(f"a range of {column.name} without an end")
    if column.kind is Kind.BOOLEAN:
        raise Malformed(f"{table.name}.{column.name} is true or false: it has no range")
    ends = [None if end is None else _wanted(table, column, end) for end in (condition.at_least, condition.below)]
    return Range(column=condition.column, at_least=ends[0], below=ends[1])


def _wanted(table: Table, column: Column, value: Any) -> Any:
    if value is None:
        raise Malformed(f"{table.name}.{column.name}: null equals nothing")
    return _checked_value(table, column, value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is wanted, not {type(value).__name__}")
    return _keepable(value)


def _keepable(text: str) -> str:
    if text.isascii():
        return text.replace("\0", REPLACEMENT) if "\0" in text else text
    return "".join(REPLACEMENT if mark == "\0" or "\ud800" <= mark <= "\udfff" else mark for mark in text)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a whole number is wanted, not {type(value).__name__}")
    if not -INTEGER_LIMIT <= value < INTEGER_LIMIT:
        raise ValueError("a whole number of more than 64 bits")
    return int(value)


def _real(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"a number is wanted, not {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false is wanted, not {type(value).__name__}")
    return value


def _timestamp(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"a moment is wanted, not {type(value).__name__}")
    if value.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return value.astimezone(UTC)


def _json(value: Any) -> Any:
    """A copy, as it would be read back. Floats without a fraction that are written with an exponent become whole."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _keepable(value)
    if kind is list or kind is tuple:
        return [_json(each) for each in value]
    if kind is dict and all(type(name) is str for name in value):
        return {_keepable(name): _json(each) for name, each in value.items()}
    if kind is int and -INTEGER_LIMIT <= value < INTEGER_LIMIT:
        return value
    if kind is float and abs(value) < EXPONENT_FROM:
        return value
    return _rarer_json(value)


def _rarer_json(value: Any) -> Any:
    """What JSON makes of it is left to JSON's own code."""
    read = json.loads(json.dumps(value, allow_nan=False))
    if isinstance(read, float):
        return int(read) if abs(read) >= EXPONENT_FROM else read
    return read if isinstance(read, int) else _json(read)


_CHECKS: Mapping[Kind, Any] = {
    Kind.TEXT: _text,
    Kind.INTEGER: _integer,
    Kind.REAL: _real,
    Kind.BOOLEAN: _boolean,
    Kind.TIMESTAMP: _timestamp,
    Kind.JSON: _json,
}
