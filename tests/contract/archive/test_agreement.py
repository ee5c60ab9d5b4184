"""Whatever rows are written and whatever is asked: every archive answers as the one in memory does."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common.archive.archive import Archive
from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.tables import Equal, In, Order, Range, Row
from tests.contract.archive.parts import SCHEMA, THINGS, everything

TEXT = st.text(max_size=8)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
REALS = st.floats(allow_nan=False, allow_infinity=False)
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | REALS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {"name": KEYS, "number": INTEGERS, "at": MOMENTS, "log_seq": st.integers(0, 3)},
    optional={
        "size": st.none() | REALS,
        "good": st.none() | st.booleans(),
        "seen_at": st.none() | MOMENTS,
        "note": st.none() | TEXT,
        "free": JSON,
    },
)
BATCHES = st.lists(st.lists(ROWS, max_size=6, unique_by=lambda row: row["name"]), max_size=4)


def _questions(rows: list[Row]) -> list[dict[str, Any]]:
    """About the values that are there, in every order."""
    orders = [None, Order(column="number", descending=True), Order(column="at")]
    asked: list[list[Any]] = [[]]
    for row in rows[:3]:
        asked += [[Equal("name", row["name"])], [Range(column="at", below=row["at"])]]
        asked += [[Equal(name, row[name])] for name in ("size", "note", "good") if row.get(name) is not None]
    asked.append([In("number", tuple(row["number"] for row in rows))] if rows else [])
    return [{"filters": filters, "order": order, "limit": 3} for filters in asked for order in orders]


async def _agree(one: Archive, other: Archive, batches: list[list[Row]]) -> None:
    for batch in batches:
        await one.upsert(THINGS, batch)
        await other.upsert(THINGS, batch)
    for question in _questions([row for batch in batches for row in batch]):
        assert await everything(one, **question) == await everything(other, **question)


@pytest.fixture(params=["sqlite", "postgresql", "supabase"])
def emptied(request: pytest.FixtureRequest) -> Callable[[], Awaitable[Archive]]:
    """A database without rows, again and again."""
    make: Callable[[], Awaitable[Archive]] = request.getfixturevalue(f"emptied_{request.param}")
    return make


def test_every_archive_answers_as_the_one_in_memory(emptied: Callable[[], Awaitable[Archive]]):
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(BATCHES)
    def agrees(batches: list[list[Row]]) -> None:
        async def compare() -> None:
            memory, database = MemoryArchive(), await emptied()
            await memory.prepare(SCHEMA)
            try:
                await _agree(database, memory, batches)
            finally:
                await database.close()

        asyncio.run(compare())

    agrees()
