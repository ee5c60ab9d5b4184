"""How values, filters and places are written in a request to PostgREST, and its refusals read. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import product
from typing import Any
from urllib.parse import quote

from libs.common.archive.checks import moment_of, moment_text
from libs.common.archive.tables import Equal, Filter, In, Kind, Row, Table
from libs.common.errors import Malformed, MeshError, Unavailable

VALUES_BYTES = 3000
"""Of one list of values, as they stand in the address; proxies take about 8,000 bytes of it in all."""

SET_UP = "apply the migrations in supabase/migrations"
MISSING = {
    "42P01": SET_UP,
    "PGRST205": SET_UP,
    "42703": SET_UP,
    "PGRST204": SET_UP,
    "42501": "SUPABASE_SERVICE_KEY is not the service key",
    "PGRST301": "SUPABASE_SERVICE_KEY is not a key of this project",
    "PGRST302": "SUPABASE_SERVICE_KEY is not a key of this project",
    "PGRST303": "SUPABASE_SERVICE_KEY has expired",
}
"""What to do about a refusal that only the owner of the project can mend; codes of PostgREST 12 and 14."""

REFUSED = ("21", "22", "23", "54", "PGRST100", "PGRST102", "PGRST103", "PGRST108", "PGRST118")
"""Of these it is the request that is wrong."""


def refusal(table: str, code: str | None, message: str | None) -> MeshError:
    """Ours for PostgREST's. What we do not know may pass: `Unavailable`."""
    if code is None and message is None:  # all that PostgREST 12 says of a write to a table that is not there
        return Unavailable(f"the archive cannot be used: nothing is said of {table}; {SET_UP}")
    text = f"{table}: {message or 'no reason was told'} ({code or 'no code'})"
    if code is not None and code.startswith(REFUSED):
        return Malformed(f"the archive refuses this: {text}")
    if code in MISSING:
        return Unavailable(f"the archive cannot be used: {text}; {MISSING[code]}")
    return Unavailable(f"the archive does not answer: {text}")


def written(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {name: moment_text(value) if isinstance(value, datetime) else value for name, value in row.items()}


def read(table: Table, row: Row) -> dict[str, Any]:
    return {column.name: _read(column.kind, row[column.name]) for column in table.columns}


def conditions(condition: Filter) -> list[tuple[str, str, str]]:
    """Column, operator and value, as they stand in the address."""
    column = condition.column
    if isinstance(condition, Equal):
        return [(column, "eq", plain(condition.value))]
    if isinstance(condition, In):
        return [(column, "in", f"({','.join(quoted(value) for value in condition.values)})")]
    ends = (("gte", condition.at_least), ("lt", condition.below))
    return [(column, operator, plain(end)) for operator, end in ends if end is not None]


def short_enough(filters: Sequence[Filter]) -> Iterator[list[Filter]]:
    """The same question as several whose addresses are not too long; each row answers one of them."""
    for chosen in product(*([*_parts(each)] if isinstance(each, In) else [each] for each in filters)):
        yield list(chosen)


def beyond(columns: tuple[str, ...], last: tuple[Any, ...], descending: bool) -> str:
    """Rows after this place: the first column lies beyond, or is equal and the second lies beyond, and so on."""
    operator = "lt" if descending else "gt"
    choices = []
    for place, column in enumerate(columns):
        same = [f"{columns[before]}.eq.{quoted(last[before])}" for before in range(place)]
        further = f"{column}.{operator}.{quoted(last[place])}"
        choices.append(f"and({','.join([*same, further])})" if same else further)
    return f"({','.join(choices)})"


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return moment_text(value)
    return repr(value) if isinstance(value, float) else str(value)


def quoted(value: Any) -> str:
    escaped = plain(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _parts(condition: In) -> Iterator[In]:
    part: list[Any] = []
    size = 0
    for value in condition.values:
        cost = len(quote(quoted(value))) + 3
        if part and size + cost > VALUES_BYTES:
            yield In(condition.column, tuple(part))
            part, size = [], 0
        part.append(value)
        size += cost
    yield In(condition.column, tuple(part))


def _read(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    if kind is Kind.TIMESTAMP:
        return moment_of(value)
    return float(value) if kind is Kind.REAL else value
