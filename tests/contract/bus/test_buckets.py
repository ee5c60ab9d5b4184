"""Buckets: one value per key, written by whoever knows the newest revision."""

import asyncio
from contextlib import aclosing
from typing import Any, cast

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.codec import decode
from libs.common.bus.transport import Entry
from libs.common.contracts.streams import Bucket
from libs.common.errors import WrongRevision
from tests.contract.bus.parts import Heard, Mesh, Note, soon


async def _bucket(mesh: Mesh) -> Bucket:
    return await mesh.declare_bucket(mesh.bucket())


def _text(entry: Entry | None) -> str | None:
    assert entry is not None
    return None if entry.payload is None else decode(Note, entry.payload).text


async def test_a_key_is_created_read_updated_and_deleted(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()

    assert await bus.get(bucket, "key") is None
    first = await bus.put(bucket, "key", Note(text="one"), revision=0)
    assert _text(await bus.get(bucket, "key")) == "one"
    second = await bus.put(bucket, "key", Note(text="two"), revision=first)
    assert second > first
    found = await bus.get(bucket, "key")
    assert found is not None
    assert (_text(found), found.revision, found.key) == ("two", second, "key")
    await bus.delete(bucket, "key", revision=second)
    assert await bus.get(bucket, "key") is None


async def test_a_key_is_created_once(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    await bus.put(bucket, "key", Note(text="mine"), revision=0)

    with pytest.raises(WrongRevision):
        await bus.put(bucket, "key", Note(text="yours"), revision=0)

    assert _text(await bus.get(bucket, "key")) == "mine"


async def test_of_two_writers_with_the_same_revision_one_wins(mesh: Mesh) -> None:
    bucket, buses = await _bucket(mesh), [await mesh.bus(), await mesh.bus()]
    revision = await buses[0].put(bucket, "key", Note(text="start"), revision=0)

    outcomes = await asyncio.gather(
        *(bus.put(bucket, "key", Note(text=str(number)), revision=revision) for number, bus in enumerate(buses)),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [WrongRevision]


async def test_a_stale_writer_deletes_nothing(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    first = await bus.put(bucket, "key", Note(text="one"), revision=0)
    await bus.put(bucket, "key", Note(text="two"), revision=first)

    with pytest.raises(WrongRevision):
        await bus.delete(bucket, "key", revision=first)

    assert _text(await bus.get(bucket, "key")) == "two"


async def test_a_deleted_key_can_be_created_again(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    revision = await bus.put(bucket, "key", Note(text="one"), revision=0)
    await bus.delete(bucket, "key", revision=revision)

    again = await bus.put(bucket, "key", Note(text="two"), revision=0)

    assert again > revision
    assert _text(await bus.get(bucket, "key")) == "two"


async def test_a_key_expires_and_can_be_created_again(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    changes = Heard()

    async def follow() -> None:
        async for entry in bus.watch(bucket):
            await changes(entry)

    following = asyncio.create_task(follow())
    await bus.put(bucket, "lease", Note(text="mine"), revision=0, ttl_seconds=1)
    assert _text(await changes.next()) == "mine"
    assert _text(await changes.next()) is None

    assert await bus.get(bucket, "lease") is None
    await bus.put(bucket, "lease", Note(text="yours"), revision=0, ttl_seconds=1)
    assert _text(await changes.next()) == "yours"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_key_that_is_written_again_in_time_does_not_expire(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    revision = await bus.put(bucket, "renewed", Note(text="0"), revision=0, ttl_seconds=2)
    await bus.put(bucket, "forgotten", Note(text="0"), revision=0, ttl_seconds=2)
    expired = asyncio.create_task(_expiry(bus, bucket, "forgotten"))
    for number in range(1, 4):
        await asyncio.wait({expired}, timeout=0.5)
        revision = await bus.put(bucket, "renewed", Note(text=str(number)), revision=revision, ttl_seconds=2)
    await soon(expired)

    assert _text(await bus.get(bucket, "renewed")) == "3"


async def _expiry(bus: Bus, bucket: Bucket, key: str) -> None:
    async with aclosing(cast(Any, bus.watch(bucket))) as entries:
        async for entry in entries:
            if entry.key == key and entry.payload is None:
                return


async def test_a_watch_tells_the_present_values_and_then_the_changes_in_order(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    first = await bus.put(bucket, "a", Note(text="a1"), revision=0)
    gone = await bus.put(bucket, "gone", Note(text="gone"), revision=0)
    await bus.put(bucket, "b", Note(text="b1"), revision=0)
    await bus.put(bucket, "a", Note(text="a2"), revision=first)
    await bus.delete(bucket, "gone", revision=gone)

    async with aclosing(cast(Any, (await mesh.bus()).watch(bucket))) as entries:
        present = [await soon(anext(entries)) for _ in range(2)]
        assert sorted((entry.key, _text(entry)) for entry in present) == [("a", "a2"), ("b", "b1")]

        changes: list[Entry] = []
        revision = 0
        for text in ("c1", "c2"):
            revision = await bus.put(bucket, "c", Note(text=text), revision=revision)
            changes.append(await soon(anext(entries)))
        await bus.delete(bucket, "c", revision=revision)
        changes.append(await soon(anext(entries)))
        assert [(entry.key, _text(entry)) for entry in changes] == [("c", "c1"), ("c", "c2"), ("c", None)]


async def test_a_watch_that_is_outrun_ends_at_the_newest_value(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    revision = await bus.put(bucket, "key", Note(text="0"), revision=0)
    async with aclosing(cast(Any, (await mesh.bus()).watch(bucket))) as entries:
        told = [await soon(anext(entries))]
        for number in range(1, 51):
            revision = await bus.put(bucket, "key", Note(text=str(number)), revision=revision)
        while told[-1].revision < revision:
            told.append(await soon(anext(entries)))

    assert _text(told[-1]) == "50"
    assert [entry.revision for entry in told] == sorted({entry.revision for entry in told})


async def test_keys_may_be_as_odd_as_subjects_allow(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    for key in ("node.a-b_c", "UPPER/lower=1"):
        await bus.put(bucket, key, Note(text=key), revision=0)
        assert _text(await bus.get(bucket, key)) == key


async def test_declaring_a_bucket_again_keeps_what_is_in_it(mesh: Mesh) -> None:
    bucket, bus = await _bucket(mesh), await mesh.bus()
    await bus.put(bucket, "key", Note(text="one"), revision=0)

    await mesh.declare_bucket(bucket)

    assert _text(await bus.get(bucket, "key")) == "one"
