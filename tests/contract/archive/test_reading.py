"""Filters, order, pages, and removing what is old."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.tables import MOST_ROWS, MOST_VALUES, Equal, In, Order, Range
from libs.common.errors import Malformed
from tests.contract.archive.parts import START, STEPS, THINGS, everything, names, step, thing

ODD_NAMES = [
    "",
    " ",
    '"',
    "'",
    "(",
    ")",
    ",",
    ".",
    "\\",
    "%",
    "*",
    "a,b",
    "a.b",
    'a"b\\',
    "null",
    "\u00e4",
    "\U0001f600",
]


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def test_what_is_not_there_is_not_found(archive: Archive):
    assert await archive.get(THINGS, {"name": "a"}) is None
    assert (await archive.page(THINGS)).rows == ()
    assert (await archive.page(THINGS)).cursor is None


async def test_a_row_is_found_by_a_key_of_two_columns(archive: Archive):
    await archive.upsert(STEPS, [step("a", 1, "x"), step("a", 2, "y"), step("b", 1, "z")])

    assert await archive.get(STEPS, {"step": 2, "thing": "a"}) == step("a", 2, "y")


async def test_text_of_any_characters_is_found(archive: Archive):
    await archive.upsert(THINGS, [thing(name, note=name) for name in ODD_NAMES])

    for name in ODD_NAMES:
        assert await names(archive, Equal("note", name)) == [name]
        found = await archive.get(THINGS, {"name": name})
        assert found is not None
        assert found["name"] == name
    assert await names(archive, In("note", tuple(ODD_NAMES))) == sorted(ODD_NAMES)


FILTERS: list[tuple[tuple[Any, ...], list[str]]] = [
    ((), ["a", "b", "c", "d"]),
    ((Equal("number", 2),), ["b"]),
    ((Equal("good", True),), ["a"]),
    ((Equal("good", False),), ["b"]),
    ((Equal("size", 0.1),), ["c"]),
    ((Equal("at", later(3)),), ["c"]),
    ((In("number", (1, 3, 99)),), ["a", "c"]),
    ((In("at", (later(1), later(4))),), ["a", "d"]),
    ((Range(column="number", at_least=2),), ["b", "c", "d"]),
    ((Range(column="number", at_least=2, below=4),), ["b", "c"]),
    ((Range(column="at", below=later(2)),), ["a"]),
    ((Range(column="note", at_least="m"),), ["d"]),
    ((Range(column="size", below=100.0),), ["c"]),
    ((Range(column="number", at_least=2), Range(column="number", below=4), Equal("name", "c")), ["c"]),
    ((Range(column="number", at_least=2), In("name", ("a", "b")), In("number", (2, 3))), ["b"]),
]


async def test_all_filters_must_hold(archive: Archive):
    rows = [thing("a", 1, good=True), thing("b", 2, good=False), thing("c", 3, size=0.1, note="a"), thing("d", 4)]
    await archive.upsert(THINGS, [*rows[:3], dict(rows[3]) | {"note": "z"}])

    for filters, found in FILTERS:
        assert await names(archive, *filters) == found, filters


async def test_many_long_values_may_be_asked_for(archive: Archive):
    long = [f"{number:03}" + "\u00e4" * 150 for number in range(150)]
    await archive.upsert(THINGS, [thing(name, number) for number, name in enumerate(long)])
    wanted = In("name", tuple(long[20 : 20 + MOST_VALUES]))

    assert await names(archive, wanted) == long[20:120]
    assert await names(archive, wanted, order=Order(column="number", descending=True)) == long[20:120][::-1]
    assert [row["number"] for row in await everything(archive, filters=[wanted], limit=30)] == list(range(20, 120))


async def test_a_value_that_is_asked_for_twice_is_found_once(archive: Archive):
    await archive.upsert(THINGS, [thing("a")])

    assert await names(archive, In("name", ("a", "a"))) == ["a"]


async def test_text_is_ordered_by_code_point(archive: Archive):
    words = ["a", "B", "_", "Z", "b", "\u00e4", "A", "10", "9", "\U0001f600", "\uffee"]
    await archive.upsert(THINGS, [thing(word) for word in words])

    assert await names(archive) == sorted(words)


async def test_more_rows_than_any_server_gives_at_once_are_all_read(archive: Archive):
    count = 2300
    for start in range(0, count, MOST_ROWS):
        batch = range(start, min(start + MOST_ROWS, count))
        await archive.upsert(THINGS, [thing(f"n{number:05}", number) for number in batch])

    assert [row["number"] for row in await everything(archive)] == list(range(count))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", ["number", "at", "name"])
async def test_pages_in_any_order_show_each_row_once(archive: Archive, column: str, descending: bool):
    rows = [thing(f"n{number:02}", number % 4) for number in range(23)]
    await archive.upsert(THINGS, rows)

    found = await everything(archive, limit=5, order=Order(column=column, descending=descending))

    expected = sorted(rows, key=lambda row: (row[column], row["name"]), reverse=descending)
    assert [row["name"] for row in found] == [row["name"] for row in expected]


@pytest.mark.parametrize("column", ["text", "weight", "thing"])
async def test_pages_go_on_after_a_key_of_two_columns(archive: Archive, column: str):
    rows = [step(name, number, text, weight) for name in ODD_NAMES for number, text, weight in
            ((-1, "same", 1 / 3), (7, 'o",(.)\\', -5e-324), (2, "same", 1e300))]  # fmt: skip
    await archive.upsert(STEPS, rows)

    found = await everything(archive, STEPS, limit=4, order=Order(column=column))

    assert found == sorted(rows, key=lambda row: (row[column], row["thing"], row["step"]))


async def test_a_page_that_is_just_full_is_the_last(archive: Archive):
    await archive.upsert(THINGS, [thing(name) for name in "abcd"])

    page = await archive.page(THINGS, limit=4)

    assert (len(page.rows), page.cursor) == (4, None)


async def test_a_row_that_comes_while_pages_are_read_hides_no_other(archive: Archive):
    await archive.upsert(THINGS, [thing(name) for name in "bdf"])
    first = await archive.page(THINGS, limit=2)

    await archive.upsert(THINGS, [thing("a"), thing("e")])
    second = await archive.page(THINGS, limit=5, cursor=first.cursor)

    assert [row["name"] for row in (*first.rows, *second.rows)] == ["b", "d", "e", "f"]


BAD_QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("no column colour", {"filters": [Equal("colour", "red")]}),
    ("is JSON", {"filters": [Equal("free", 1)]}),
    ("null equals nothing", {"filters": [Equal("note", None)]}),
    ("text is wanted", {"filters": [Equal("note", 5)]}),
    ("without a time zone", {"filters": [Range(column="at", below=datetime(2030, 1, 1))]}),  # noqa: DTZ001
    ("1 to 100 are allowed", {"filters": [In("number", tuple(range(MOST_VALUES + 1)))]}),
    ("1 to 100 are allowed", {"filters": [In("number", ())]}),
    ("without an end", {"filters": [Range(column="number")]}),
    ("has no range", {"filters": [Range(column="good", below=True)]}),
    ("leads no index", {"order": Order(column="log_seq")}),
    ("leads no index", {"order": Order(column="note")}),
    ("no column colour", {"order": Order(column="colour")}),
    ("1 to 500 rows", {"limit": 0}),
    ("1 to 500 rows", {"limit": MOST_ROWS + 1}),
    ("cursor", {"cursor": "nonsense"}),
    ("cursor", {"cursor": "\u00e4"}),
    ("cursor", {"cursor": "WzEsMl0="}),
]


async def test_a_bad_question_is_refused(archive: Archive):
    for words, question in BAD_QUESTIONS:
        with pytest.raises(Malformed, match=words):
            await archive.page(THINGS, **question)


async def test_a_cursor_of_another_question_is_refused(archive: Archive):
    await archive.upsert(THINGS, [thing(name) for name in "abc"])
    cursor = (await archive.page(THINGS, limit=1)).cursor

    with pytest.raises(Malformed, match="cursor"):
        await archive.page(THINGS, order=Order(column="number"), cursor=cursor)
    with pytest.raises(Malformed, match="cursor"):
        await archive.page(STEPS, cursor=cursor)


async def test_only_a_whole_key_finds_a_row(archive: Archive):
    bad_keys: list[dict[str, Any]] = [{}, {"number": 1}, {"name": "a", "number": 1}, {"name": 1}, {"name": None}]
    for key in bad_keys:
        with pytest.raises(Malformed):
            await archive.get(THINGS, key)


async def test_what_is_older_is_removed_and_counted(archive: Archive):
    await archive.upsert(THINGS, [thing(str(number), number) for number in range(9)])

    assert await archive.delete_older_than(THINGS, "at", later(4)) == 4
    assert await archive.delete_older_than(THINGS, "at", later(4)) == 0
    assert await names(archive) == ["4", "5", "6", "7", "8"]


async def test_more_than_a_page_is_removed_at_once(archive: Archive):
    for start in range(0, 1500, MOST_ROWS):
        await archive.upsert(THINGS, [thing(f"{number}", number) for number in range(start, start + MOST_ROWS)])

    assert await archive.delete_older_than(THINGS, "at", later(1400)) == 1400


async def test_a_row_without_that_moment_is_not_removed(archive: Archive):
    await archive.upsert(THINGS, [thing("a"), thing("b", seen_at=START)])

    assert await archive.delete_older_than(THINGS, "seen_at", later(1)) == 1
    assert await names(archive) == ["a"]


async def test_nothing_is_removed_without_a_moment(archive: Archive):
    naive = datetime(2030, 1, 1)  # noqa: DTZ001
    bad: list[tuple[str, Any]] = [("number", START), ("colour", START), ("at", None), ("seen_at", None), ("at", naive)]
    await archive.upsert(THINGS, [thing("a")])

    for column, moment in bad:
        with pytest.raises(Malformed):
            await archive.delete_older_than(THINGS, column, moment)

    assert await names(archive) == ["a"]
