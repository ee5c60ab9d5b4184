"""Tables of a service as SQLAlchemy sees them, and the statements made of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect

from libs.common.archive.checks import moment_of, moment_text
from libs.common.archive.tables import Equal, Filter, In, Kind, Row, Table


class MomentType(sa.TypeDecorator[datetime]):
    """In SQLite text of one length, so that it is ordered; in PostgreSQL what it has for this."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        kind = TIMESTAMP(timezone=True) if dialect.name == "postgresql" else sa.Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else moment_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return moment_of(value) if isinstance(value, str) else value


TYPES: dict[Kind, Any] = {
    Kind.TEXT: sa.Text(),
    Kind.INTEGER: sa.BigInteger(),
    Kind.REAL: sa.Double(),
    Kind.BOOLEAN: sa.Boolean(),
    Kind.TIMESTAMP: MomentType(),
    Kind.JSON: sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql"),
}


def sql_table(table: Table) -> sa.Table:
    columns: list[sa.Column[Any]] = [
        sa.Column(column.name, TYPES[column.kind], primary_key=column.name in table.key, nullable=column.nullable)
        for column in table.columns
    ]
    return sa.Table(table.name, sa.MetaData(), *columns)


def upsert(table: Table, known: sa.Table, dialect: str) -> sa.Executable:
    """Whether a stored row is replaced is decided by the triggers of the migrations."""
    statement: Any = (postgresql_insert if dialect == "postgresql" else sqlite_insert)(known)
    others = {name: statement.excluded[name] for name in table.names if name not in table.key}
    if not others:
        return statement.on_conflict_do_nothing(index_elements=table.key)  # type: ignore[no-any-return]
    return statement.on_conflict_do_update(index_elements=table.key, set_=others)  # type: ignore[no-any-return]


def page(
    known: sa.Table,
    filters: Sequence[Filter],
    columns: tuple[str, ...],
    descending: bool,
    last: tuple[Any, ...] | None,
    limit: int,
) -> sa.Executable:
    statement = sa.select(known).where(*(condition(known, each) for each in filters))
    if last is not None:
        statement = statement.where(_beyond(known, columns, last, descending))
    order = [known.c[name].desc() if descending else known.c[name] for name in columns]
    return statement.order_by(*order).limit(limit)


def condition(known: sa.Table, wanted: Filter) -> sa.ColumnElement[bool]:
    column: sa.ColumnElement[Any] = known.c[wanted.column]
    if isinstance(wanted, Equal):
        return sa.and_(column == wanted.value)
    if isinstance(wanted, In):
        return column.in_(wanted.values)
    ends: list[sa.ColumnElement[bool]] = []
    if wanted.at_least is not None:
        ends.append(column >= wanted.at_least)
    if wanted.below is not None:
        ends.append(column < wanted.below)
    return sa.and_(*ends)


def by_key(known: sa.Table, key: Row) -> sa.Executable:
    return sa.select(known).where(*(known.c[name] == value for name, value in key.items()))


def delete_older(known: sa.Table, column: str, moment: datetime) -> sa.Executable:
    return sa.delete(known).where(known.c[column] < moment)


def _beyond(known: sa.Table, columns: tuple[str, ...], last: tuple[Any, ...], downwards: bool) -> Any:
    place = sa.tuple_(*(known.c[name] for name in columns))
    seen = sa.tuple_(
        *(sa.bindparam(None, value, known.c[name].type) for name, value in zip(columns, last, strict=True))
    )
    return place < seen if downwards else place > seen
