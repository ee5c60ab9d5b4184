"""Rows go in whole, once, and the newest wins."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.tables import MOST_ROWS, Row
from libs.common.errors import Malformed, Unavailable
from tests.contract.archive.parts import SCHEMA, START, STEPS, THINGS, everything, step, thing

FULL: Row = thing(
    size=0.1,
    good=True,
    seen_at=START,
    note="quotes \" ' , ( ) \\ % and \u00fcn\u00efc\u00f6de \U0001f600\nlines",
    free={"list": [1, 2.5, None, True, "x"], "empty": {}, "deep": {"a": ["\u00e4", '"']}},
)


async def test_a_row_is_read_as_it_was_written(archive: Archive):
    await archive.upsert(THINGS, [FULL])

    assert await archive.get(THINGS, {"name": "a"}) == FULL


async def test_what_is_left_out_is_null(archive: Archive):
    await archive.upsert(THINGS, [thing()])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert {name for name, value in found.items() if value is None} == {"size", "good", "seen_at", "note", "free"}


@pytest.mark.parametrize("value", [True, False, None, 0, 17, 0.5, "", "text", "5", [], {}, {"a": None}, [[1]]])
async def test_any_json_is_kept(archive: Archive, value: Any):
    await archive.upsert(THINGS, [thing(free=value)])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["free"] == value
    assert type(found["free"]) is type(value)


async def test_a_large_number_in_json_is_the_same_everywhere(archive: Archive):
    await archive.upsert(THINGS, [thing(free=[1e308, -1e16, 9e15, 1e-300])])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert [(each, type(each)) for each in found["free"]] == [
        (int(1e308), int),
        (-(10**16), int),
        (9e15, float),
        (1e-300, float),
    ]


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1])
async def test_whole_numbers_of_64_bits_are_exact(archive: Archive, number: int):
    await archive.upsert(THINGS, [thing(number=1, log_seq=number)])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["log_seq"] == number


@pytest.mark.parametrize("size", [0.0, 1.0, -2.5, 1 / 3, 1e308, 5e-324])
async def test_real_numbers_are_exact_and_stay_real(archive: Archive, size: float):
    await archive.upsert(THINGS, [thing(size=size)])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["size"] == size
    assert type(found["size"]) is float


async def test_a_moment_comes_back_in_utc(archive: Archive):
    there = datetime(2030, 7, 1, 8, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    await archive.upsert(THINGS, [thing(at=there, seen_at=datetime(1, 2, 3, tzinfo=UTC))])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["at"] == there
    assert found["at"].utcoffset() == timedelta(0)
    assert found["seen_at"] == datetime(1, 2, 3, tzinfo=UTC)


async def test_what_postgresql_cannot_keep_in_text_is_replaced(archive: Archive):
    await archive.upsert(THINGS, [thing(note="a\0b\ud800c", free={"k\0": ["v\0", "\udfff"]})])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["note"] == "a\ufffdb\ufffdc"
    assert found["free"] == {"k\ufffd": ["v\ufffd", "\ufffd"]}


async def test_writing_the_same_batch_again_changes_nothing(archive: Archive):
    batch = [thing(name, number) for number, name in enumerate("abc")]
    await archive.upsert(THINGS, batch)
    before = await everything(archive)

    await archive.upsert(THINGS, batch)

    assert await everything(archive) == before


async def test_a_newer_row_replaces_the_whole_older_one(archive: Archive):
    await archive.upsert(THINGS, [thing(note="old", size=1.0, log_seq=5)])
    await archive.upsert(THINGS, [thing(note="new", log_seq=6)])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert (found["note"], found["size"], found["log_seq"]) == ("new", None, 6)


async def test_an_older_row_is_passed_over_and_the_others_of_its_batch_are_kept(archive: Archive):
    await archive.upsert(THINGS, [thing("b", note="kept", log_seq=5)])

    await archive.upsert(THINGS, [thing(name, note="came late", log_seq=4) for name in "abc"])

    assert [row["note"] for row in await everything(archive)] == ["came late", "kept", "came late"]


async def test_a_row_of_the_same_age_replaces(archive: Archive):
    await archive.upsert(THINGS, [thing(note="first", log_seq=5)])
    await archive.upsert(THINGS, [thing(note="second", log_seq=5)])

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["note"] == "second"


async def test_an_append_only_table_keeps_what_was_written_first(archive: Archive):
    await archive.upsert(STEPS, [step("a", 1, "first")])

    await archive.upsert(STEPS, [step("a", 1, "again"), step("a", 2, "next")])

    assert [row["text"] for row in await everything(archive, STEPS)] == ["first", "next"]


async def test_of_writers_at_once_the_newest_row_remains(archive: Archive):
    await asyncio.gather(*(archive.upsert(THINGS, [thing(log_seq=number)]) for number in (3, 9, 1, 7, 5, 8, 2)))

    found = await archive.get(THINGS, {"name": "a"})

    assert found is not None
    assert found["log_seq"] == 9


async def test_the_largest_batch_is_written_at_once(archive: Archive):
    await archive.upsert(THINGS, [thing(f"n{number:05}", number, note="x" * 200) for number in range(MOST_ROWS)])

    assert len(await everything(archive)) == MOST_ROWS


async def test_nothing_to_write_is_no_error(archive: Archive):
    await archive.upsert(THINGS, [])

    assert await everything(archive) == []


BAD: list[tuple[str, list[Row]]] = [
    ("has no column colour", [thing(colour="red")]),
    ("number may not be null", [{"name": "a", "at": START, "log_seq": 1}]),
    ("same key twice", [thing("a"), thing("a", 2)]),
    ("500 are the most", [thing(str(number)) for number in range(MOST_ROWS + 1)]),
    ("text is wanted, not int", [thing(note=1)]),
    ("whole number is wanted, not bool", [thing(number=1, log_seq=True)]),
    ("whole number is wanted, not float", [thing(log_seq=1.0)]),
    ("more than 64 bits", [thing(log_seq=2**63)]),
    ("not a finite number", [thing(size=float("nan"))]),
    ("not a finite number", [thing(size=float("inf"))]),
    ("true or false is wanted", [thing(good=1)]),
    ("without a time zone", [thing(at=datetime(2030, 1, 1))]),  # noqa: DTZ001
    ("a moment is wanted, not str", [thing(at="2030-01-01")]),
    ("not JSON compliant", [thing(free=[float("nan")])]),
    ("not JSON serializable", [thing(free={"a": START})]),
    ("part of the key", [thing("a\0b")]),
]


async def test_a_bad_batch_is_refused_whole(archive: Archive):
    for words, batch in BAD:
        with pytest.raises(Malformed, match=words):
            await archive.upsert(THINGS, [thing("good"), *batch] if len(batch) == 1 else batch)

    assert await everything(archive) == []
    assert archive.problem() is None


async def test_a_table_that_is_not_there_is_told(bare: Archive):
    absent = replace(THINGS, name="absent")

    with pytest.raises(Unavailable, match="absent"):
        await bare.upsert(absent, [thing()])
    with pytest.raises(Unavailable, match="absent"):
        await bare.page(absent)
    assert "absent" in (bare.problem() or "") or isinstance(bare, MemoryArchive)


async def test_preparing_again_and_side_by_side_keeps_what_is_there(bare: Archive):
    await asyncio.gather(*(bare.prepare(SCHEMA) for _ in range(5)))
    await bare.upsert(THINGS, [thing()])

    await bare.prepare(SCHEMA)

    assert len(await everything(bare)) == 1


async def test_a_ping_is_answered(bare: Archive):
    await bare.ping()

    assert bare.problem() is None
