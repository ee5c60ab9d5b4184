"""Pages of items, the newest first."""

from collections.abc import Iterable
from dataclasses import dataclass

from libs.common.errors import Malformed
from services.work_marshaling.model import Filter, WorkItem


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[WorkItem, ...]
    cursor: str | None


def page(newest_first: Iterable[WorkItem], wanted: Filter, *, limit: int, cursor: str | None) -> Page:
    """At most `limit` items older than the cursor. Raises `Malformed` for a cursor that is none of ours."""
    older_than = None if cursor is None else _order(cursor)
    found: list[WorkItem] = []
    for item in newest_first:
        if older_than is not None and item.order >= older_than:
            continue
        if wanted.holds(item):
            if len(found) == limit:
                sequence, index = found[-1].order
                return Page(tuple(found), f"{sequence}.{index}")
            found.append(item)
    return Page(tuple(found), None)


def _order(cursor: str) -> tuple[int, int]:
    sequence, _, index = cursor.partition(".")
    try:
        return int(sequence), int(index)
    except ValueError:
        raise Malformed("cursor: take it as it was given with the page before", cursor=cursor[:64]) from None
