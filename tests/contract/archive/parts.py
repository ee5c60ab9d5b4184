"""Tables of the contract tests, and rows for them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from libs.common.archive.archive import Archive
from libs.common.archive.migrations import read_schema
from libs.common.archive.tables import Column, Kind, Order, Page, Row, Table

START = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)

THINGS = Table(
    name="things",
    owner="tests",
    key=("name",),
    columns=(
        Column(name="name", kind=Kind.TEXT),
        Column(name="number", kind=Kind.INTEGER),
        Column(name="size", kind=Kind.REAL, nullable=True),
        Column(name="good", kind=Kind.BOOLEAN, nullable=True),
        Column(name="at", kind=Kind.TIMESTAMP),
        Column(name="seen_at", kind=Kind.TIMESTAMP, nullable=True),
        Column(name="note", kind=Kind.TEXT, nullable=True),
        Column(name="free", kind=Kind.JSON, nullable=True),
        Column(name="log_seq", kind=Kind.INTEGER),
    ),
    indexes=(("number",), ("at",)),
)
STEPS = Table(
    name="steps",
    owner="tests",
    key=("thing", "step"),
    columns=(
        Column(name="thing", kind=Kind.TEXT),
        Column(name="step", kind=Kind.INTEGER),
        Column(name="weight", kind=Kind.REAL),
        Column(name="text", kind=Kind.TEXT),
    ),
    indexes=(("text",), ("weight",)),
    append_only=True,
)
SCHEMA = read_schema("tests", (STEPS, THINGS), Path(__file__).parent / "migrations")


def thing(name: str = "a", number: int = 1, **values: Any) -> Row:
    return {"name": name, "number": number, "at": START + timedelta(seconds=number), "log_seq": 1} | values


def step(thing: str, number: int, text: str = "", weight: float = 0.0) -> Row:
    return {"thing": thing, "step": number, "weight": weight, "text": text}


async def everything(archive: Archive, table: Table = THINGS, limit: int = 500, **question: Any) -> list[Row]:
    """All rows, page by page."""
    page: Page | None = None
    rows: list[Row] = []
    while page is None or page.cursor is not None:
        page = await archive.page(table, limit=limit, cursor=page and page.cursor, **question)
        assert len(page.rows) <= limit
        rows.extend(page.rows)
    return rows


async def names(archive: Archive, *filters: Any, order: Order | None = None) -> list[str]:
    return [row["name"] for row in await everything(archive, filters=filters, order=order)]
