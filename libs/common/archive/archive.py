"""What services need of an archive. Port of `archive_memory.py`, `archive_sql.py` and `archive_supabase.py`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from libs.common.archive.tables import MOST_ROWS, Filter, Order, Page, Row, Schema, Table


class Archive(Protocol):
    """Connects when it is first used, and again after an outage.

    Every method but `problem` and `close` raises `Unavailable` while the database is away or lacks the table, and
    `Malformed` for what no database could answer.
    """

    async def prepare(self, schema: Schema) -> None:
        """Bring the tables to this schema, or make sure that they are there. May be repeated, and side by side.

        Raises `Conflict` when a migration was changed after it had been applied.
        """
        ...

    async def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write whole rows by key, all or none; writing them again changes nothing.

        A row that the table does not let replace the stored one (`Table.replaces`) is passed over silently.
        """
        ...

    async def page(
        self,
        table: Table,
        filters: Sequence[Filter] = (),
        *,
        order: Order | None = None,
        limit: int = MOST_ROWS,
        cursor: str | None = None,
    ) -> Page:
        """Rows that all filters hold for, by key unless `order` says else. Pages neither skip nor repeat a row that
        stays as it is while they are read."""
        ...

    async def get(self, table: Table, key: Row) -> Row | None: ...

    async def delete_older_than(self, table: Table, column: str, moment: datetime) -> int:
        """Remove the rows whose timestamp is before `moment`. Returns how many."""
        ...

    async def ping(self) -> None:
        """Return when the database answers."""
        ...

    def problem(self) -> str | None:
        """Why the last question failed; None when it did not."""
        ...

    async def close(self) -> None: ...
