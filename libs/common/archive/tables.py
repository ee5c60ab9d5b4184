"""What a service declares of its tables, and what it may ask of them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

MOST_ROWS = 500
"""In one batch, and on one page."""

MOST_VALUES = 100
"""In one `In`."""

LOG_SEQ = "log_seq"
"""The column by which a table refuses what is older than what it has."""

Row = Mapping[str, Any]
"""From a column's name to its value: str, int, float, bool, an aware datetime, JSON, or None."""


class Kind(StrEnum):
    """What a column holds. INTEGER has 64 bits, REAL is a double, TIMESTAMP is UTC to the microsecond."""

    TEXT = "text"
    INTEGER = "integer"
    REAL = "real"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    kind: Kind
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as its owner, a service, declares it. Its migrations make exactly this.

    `key` is the primary key. Each of `indexes` names its columns in order. With a column `log_seq` the database keeps
    the row whose `log_seq` is higher; an `append_only` table keeps a row as it was written first.
    """

    name: str
    owner: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    append_only: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def guarded(self) -> bool:
        return not self.append_only and LOG_SEQ in self.names

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    def key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)

    def replaces(self, new: Row, old: Row) -> bool:
        """Whether the database lets `new` take the place of `old`."""
        if self.append_only:
            return False
        return not self.guarded or bool(new[LOG_SEQ] >= old[LOG_SEQ])


@dataclass(frozen=True, slots=True)
class Equal:
    """The column has this value. Null equals nothing."""

    column: str
    value: Any


@dataclass(frozen=True, slots=True)
class In:
    """The column has one of these values, at most `MOST_VALUES`."""

    column: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """`at_least` ≤ column < `below`; one of the two may be left out."""

    column: str
    at_least: Any = None
    below: Any = None


Filter = Equal | In | Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """By a column that leads the key or an index, and then by the key. Text is ordered by code point."""

    column: str
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows in the order that was asked for. `cursor` leads to the next page; None: this was the last."""

    rows: tuple[Row, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of a service's schema, in both dialects. `made` orders the steps of all services."""

    service: str
    number: int
    name: str
    made: datetime
    sqlite: str
    postgresql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Everything of one service. Its tables are written in this order: what others refer to comes last."""

    service: str
    tables: tuple[Table, ...]
    migrations: tuple[Migration, ...]
