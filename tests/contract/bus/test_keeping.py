"""Streams: append, read, look up, trim."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from libs.common.bus.observer import CORRELATION_HEADER, Correlated
from libs.common.bus.transport import Expect, Stored
from libs.common.errors import Conflict, Malformed, NobodyAnswers, NotFound, StreamFull, TooLarge, WrongRevision
from tests.contract.bus.parts import Heard, Mesh, Note, soon
from tests.recording import RecordingObserver


async def _collect(reading: AsyncIterator[Sequence[Stored]], count: int) -> list[Stored]:
    """The first `count` messages; the reading is ended."""
    found: list[Stored] = []
    async with aclosing(cast(Any, reading)), asyncio.timeout(5):
        async for batch in reading:
            found.extend(batch)
            if len(found) >= count:
                break
    return found


async def test_what_was_appended_is_read_in_order(mesh: Mesh) -> None:
    stream, topic = await mesh.declare(mesh.stream()), mesh.topic()
    bus = await mesh.bus()
    receipts = [await bus.append(topic, Note(text=str(number)), message_id=None) for number in range(600)]

    stored = await _collect(bus.read(stream, after=0), 600)

    assert [receipt.sequence for receipt in receipts] == list(range(1, 601))
    assert [message.sequence for message in stored] == list(range(1, 601))
    assert [bus.decode(topic, message).text for message in stored] == [str(number) for number in range(600)]
    assert {(message.stream, message.subject) for message in stored} == {(stream.name, topic.subject)}


async def test_reading_starts_after_the_cursor(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    for number in range(10):
        await bus.append(topic, Note(text=str(number)), message_id=None)

    stored = await _collect(bus.read(stream, after=7), 3)

    assert [message.sequence for message in stored] == [8, 9, 10]


async def test_reading_goes_on_with_what_comes_later(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    heard = Heard()

    async def follow() -> None:
        async for batch in bus.read(stream, after=0):
            for message in batch:
                await heard(message)

    following = asyncio.create_task(follow())
    for number in range(5):
        await bus.append(topic, Note(text=str(number)), message_id=None)
        assert (await heard.next()).sequence == number + 1
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

    assert heard.empty


async def test_two_readers_each_read_everything(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    readings = [asyncio.create_task(_collect((await mesh.bus()).read(stream, after=0), 50)) for _ in range(2)]
    for number in range(50):
        await bus.append(topic, Note(text=str(number)), message_id=None)

    for reading in readings:
        assert [message.sequence for message in await soon(reading)] == list(range(1, 51))


async def test_a_message_id_is_kept_once(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()

    first = await bus.append(topic, Note(text="a"), message_id="same")
    second = await bus.append(topic, Note(text="a"), message_id="same")

    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.sequence == second.sequence == 1
    assert (await bus.stream_state(stream)).messages == 1


async def test_a_writer_that_is_not_up_to_date_is_refused(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    for sequence in range(3):
        await bus.append(topic, Note(text="a"), message_id=None, expect=Expect(sequence=sequence))

    for stale in (0, 2, 99):
        with pytest.raises(WrongRevision):
            await bus.append(topic, Note(text="b"), message_id=None, expect=Expect(sequence=stale))
    assert (await bus.stream_state(stream)).last_sequence == 3


async def test_a_writer_is_fenced_by_another_subject(mesh: Mesh) -> None:
    await mesh.declare(mesh.stream("log", "epoch"))
    log, epoch, bus = mesh.topic("log"), mesh.topic("epoch"), await mesh.bus()
    mine = await bus.append(epoch, Note(text="first leader"), message_id=None, expect=Expect(sequence=0))
    fence = Expect(sequence=mine.sequence, subject=epoch.subject)
    await bus.append(log, Note(text="a"), message_id="a", expect=fence)
    await bus.append(log, Note(text="b"), message_id="b", expect=fence)

    await bus.append(epoch, Note(text="second leader"), message_id=None, expect=Expect(sequence=mine.sequence))

    with pytest.raises(WrongRevision):
        await bus.append(log, Note(text="c"), message_id="c", expect=fence)


async def test_what_was_kept_under_an_id_stays_kept_when_the_fence_has_moved(mesh: Mesh) -> None:
    """A receipt that got lost must be found again by sending the same thing once more."""
    await mesh.declare(mesh.stream())
    topic, bus = mesh.topic(), await mesh.bus()
    first = await bus.append(topic, Note(text="a"), message_id="a", expect=Expect(sequence=0))

    again = await bus.append(topic, Note(text="a"), message_id="a", expect=Expect(sequence=0))

    assert (again.sequence, again.duplicate) == (first.sequence, True)


async def test_a_full_stream_refuses_and_keeps_what_it_has(mesh: Mesh) -> None:
    stream = await mesh.declare(mesh.stream(max_bytes=64 * 1024))
    topic, bus, note = mesh.topic(), await mesh.bus(), Note(text="x" * 4096)
    for _ in range(15):
        await bus.append(topic, note, message_id=None)

    with pytest.raises(StreamFull):
        await bus.append(topic, note, message_id=None)

    state = await bus.stream_state(stream)
    assert (state.first_sequence, state.messages) == (1, 15)


async def test_a_stream_that_may_forget_drops_the_oldest(mesh: Mesh) -> None:
    stream = await mesh.declare(mesh.stream(max_bytes=64 * 1024, discard="old"))
    topic, bus = mesh.topic(), await mesh.bus()
    for _ in range(30):
        await bus.append(topic, Note(text="x" * 4096), message_id=None)

    state = await bus.stream_state(stream)
    assert state.last_sequence == 30
    assert state.first_sequence == 30 - state.messages + 1 > 10


async def test_too_large_a_message_is_refused_before_it_is_sent(mesh: Mesh) -> None:
    await mesh.declare(mesh.stream(max_bytes=8 * 1024 * 1024))
    observer = RecordingObserver()
    bus = await mesh.bus(observer=observer)

    with pytest.raises(TooLarge):
        await bus.append(mesh.topic(), Note(text="x" * 1024 * 1024), message_id=None)

    assert observer.sendings == [("append", mesh.subject(), "too_large")]


async def test_appending_where_no_stream_keeps_it_is_told(mesh: Mesh) -> None:
    with pytest.raises(NobodyAnswers):
        await soon((await mesh.bus()).append(mesh.topic(), Note(text="x"), message_id=None, timeout=1.0))


async def test_a_message_is_found_by_its_sequence(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    receipt = await bus.append(topic, Note(text="a"), message_id="an id")

    found = await bus.message(stream, receipt.sequence)

    assert found is not None
    assert bus.decode(topic, found) == Note(text="a")
    assert (found.sequence, found.subject, found.stream) == (1, topic.subject, stream.name)
    assert found.at.tzinfo is not None
    assert await bus.message(stream, 2) is None


async def test_the_last_message_of_a_subject_is_found(mesh: Mesh) -> None:
    stream, bus = await mesh.declare(mesh.stream("log", "epoch", "silent")), await mesh.bus()
    for word, text in (("epoch", "e1"), ("log", "l1"), ("epoch", "e2"), ("log", "l2")):
        await bus.append(mesh.topic(word), Note(text=text), message_id=None)

    found = await bus.last(stream, mesh.topic("epoch"))

    assert found is not None
    assert (bus.decode(mesh.topic("epoch"), found).text, found.sequence) == ("e2", 3)
    assert await bus.last(stream, mesh.topic("silent")) is None


async def test_a_stream_can_be_trimmed_from_the_front(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    for number in range(5):
        await bus.append(topic, Note(text=str(number)), message_id=None)

    await bus.purge(stream, below=4)

    state = await bus.stream_state(stream)
    assert (state.messages, state.first_sequence, state.last_sequence) == (2, 4, 5)
    assert await bus.message(stream, 3) is None
    assert [message.sequence for message in await _collect(bus.read(stream, after=0), 2)] == [4, 5]


async def test_a_stream_that_was_emptied_goes_on_counting(mesh: Mesh) -> None:
    stream, topic, bus = await mesh.declare(mesh.stream()), mesh.topic(), await mesh.bus()
    for number in range(3):
        await bus.append(topic, Note(text=str(number)), message_id=None)
    await bus.purge(stream, below=4)

    assert await bus.last(stream, topic) is None
    state = await bus.stream_state(stream)
    assert (state.messages, state.last_sequence) == (0, 3)
    assert (await bus.append(topic, Note(text="x"), message_id=None, expect=Expect(sequence=0))).sequence == 4
    assert [message.sequence for message in await _collect(bus.read(stream, after=1), 1)] == [4]


async def test_the_state_of_a_stream_is_told(mesh: Mesh) -> None:
    stream, bus = await mesh.declare(mesh.stream(max_bytes=123_456)), await mesh.bus()
    await bus.append(mesh.topic(), Note(text="x" * 1000), message_id=None)

    state = await bus.stream_state(stream)

    assert (state.max_bytes, state.messages, state.first_sequence) == (123_456, 1, 1)
    assert 1000 < state.bytes < 1300
    assert state.created.tzinfo is not None


async def test_a_stream_that_does_not_exist_is_not_found(mesh: Mesh) -> None:
    with pytest.raises(NotFound):
        await (await mesh.bus()).stream_state(mesh.stream(name="ABSENT"))


async def test_declaring_a_stream_again_changes_nothing(mesh: Mesh) -> None:
    stream, bus = await mesh.declare(mesh.stream()), await mesh.bus()
    await bus.append(mesh.topic(), Note(text="x"), message_id="a")
    before = await bus.stream_state(stream)

    await mesh.declare(stream)

    assert await bus.stream_state(stream) == before
    assert (await bus.append(mesh.topic(), Note(text="x"), message_id="a")).duplicate


async def test_declaring_a_stream_differently_changes_it(mesh: Mesh) -> None:
    await mesh.declare(mesh.stream("notes", max_bytes=100_000))
    bus = await mesh.bus()
    await bus.append(mesh.topic(), Note(text="x"), message_id=None)

    stream = await mesh.declare(mesh.stream("notes", "more", max_bytes=200_000))

    assert (await bus.append(mesh.topic("more"), Note(text="y"), message_id=None)).sequence == 2
    assert (await bus.stream_state(stream)).max_bytes == 200_000


async def test_two_streams_cannot_keep_the_same_subject(mesh: Mesh) -> None:
    await mesh.declare(mesh.stream("notes", name="ONE"))

    with pytest.raises(Conflict):
        await mesh.declare(mesh.stream("notes", name="TWO"))


async def test_the_correlation_id_is_kept_with_the_message(mesh: Mesh) -> None:
    stream, bus = await mesh.declare(mesh.stream()), await mesh.bus()
    with Correlated("abc"):
        await bus.append(mesh.topic(), Note(text="x"), message_id=None)

    found = await bus.message(stream, 1)

    assert found is not None
    assert found.headers[CORRELATION_HEADER] == "abc"


async def test_what_is_appended_is_also_heard_live(mesh: Mesh) -> None:
    await mesh.declare(mesh.stream())
    heard, bus = Heard(), await mesh.bus()
    await (await mesh.bus()).subscribe(mesh.topic(), heard)

    await bus.append(mesh.topic(), Note(text="x"), message_id=None)

    assert await heard.texts(1) == ["x"]


async def test_a_request_on_a_kept_subject_is_answered_with_the_receipt(mesh: Mesh) -> None:
    stream = await mesh.declare(mesh.stream())

    answer = await (await mesh.transport()).request(mesh.subject(), b'{"text":"x"}', {}, timeout=2)

    receipt = json.loads(answer.payload)
    assert (receipt["stream"], receipt["seq"]) == (stream.name, 1)


async def test_what_a_stranger_published_plainly_is_kept_too(mesh: Mesh) -> None:
    stream, bus = await mesh.declare(mesh.stream()), await mesh.bus()
    await (await mesh.transport()).publish(mesh.subject(), b"not JSON", {"X-Stranger": "yes"})

    (stored,) = await _collect(bus.read(stream, after=0), 1)

    assert (stored.payload, stored.headers["X-Stranger"]) == (b"not JSON", "yes")
    with pytest.raises(Malformed):
        bus.decode(mesh.topic(), stored)
