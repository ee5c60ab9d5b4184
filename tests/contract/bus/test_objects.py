"""Objects: named bytes that are too large for a message."""

import asyncio
import random

import pytest

from libs.common.bus.objects import CHUNK_BYTES, Objects
from libs.common.contracts.base import ObjectRef
from libs.common.contracts.streams import MIB, ObjectBucket
from libs.common.errors import Malformed, NotFound, StreamFull
from tests.contract.bus.parts import Mesh


async def _objects(mesh: Mesh, max_bytes: int = 64 * MIB) -> Objects:
    bucket = ObjectBucket(name=mesh.subject().split(".")[0], summary="Objects.", max_bytes=max_bytes)
    await mesh.declare(bucket.stream)
    return (await mesh.bus()).objects(bucket)


def _content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB])
async def test_what_was_put_is_got(mesh: Mesh, size: int) -> None:
    objects = await _objects(mesh)
    ref = await objects.put("one", _content(size))

    assert (ref.name, ref.bytes) == ("one", size)
    assert await objects.get(ref) == _content(size)


async def test_an_object_that_is_not_there_is_not_found(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    ref = await objects.put("one", b"1")

    with pytest.raises(NotFound):
        await objects.get(ref.model_copy(update={"name": "other"}))


async def test_an_object_that_was_removed_takes_no_room(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    ref = await objects.put("one", _content(MIB))
    await objects.put("other", b"stays")
    await objects.remove("one")
    await objects.remove("one")

    with pytest.raises(NotFound):
        await objects.get(ref)
    assert await objects.names() == ["other"]
    assert await objects.size() < 1_000


async def test_another_object_under_the_same_name_takes_its_place(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    before = await objects.put("one", _content(MIB))
    after = await objects.put("one", b"small")

    assert await objects.get(after) == b"small"
    assert await objects.size() < 1_000
    with pytest.raises(Malformed):
        await objects.get(before)


async def test_the_same_object_twice_is_there_once(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    await objects.put("one", _content(MIB))
    there = await objects.size()
    await objects.put("one", _content(MIB))

    assert await objects.size() == there


async def test_an_object_that_does_not_fit_is_refused_and_leaves_nothing(mesh: Mesh) -> None:
    objects = await _objects(mesh, max_bytes=MIB)
    with pytest.raises(StreamFull):
        await objects.put("large", _content(2 * MIB))

    assert await objects.size() < 1_000
    assert await objects.names() == []


async def test_objects_are_put_and_got_side_by_side(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    sizes = [100_000 * number for number in range(1, 9)]
    refs = await asyncio.gather(*(objects.put(f"o{size}", _content(size)) for size in sizes))

    assert await asyncio.gather(*map(objects.get, refs)) == [_content(size) for size in sizes]
    assert sorted(await objects.names()) == sorted(f"o{size}" for size in sizes)


async def test_a_reference_says_when_an_object_is_another_one(mesh: Mesh) -> None:
    objects = await _objects(mesh)
    ref: ObjectRef = await objects.put("one", b"mine")

    with pytest.raises(Malformed, match="digest"):
        await objects.get(ref.model_copy(update={"digest": "SHA-256=" + "A" * 43 + "="}))
