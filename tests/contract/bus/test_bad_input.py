"""Bad input on every subject: whoever can be answered is, it is counted, what was durable is kept, and life goes on."""

import asyncio
from typing import Any

import pytest

from docs.generate.samples import FOLDER
from libs.common.bus.bus import Bus
from libs.common.bus.codec import decode
from libs.common.bus.transport import Stored
from libs.common.contracts.base import DEAD_LETTER, Call, ErrorReply, Message, Topic
from libs.common.contracts.catalogue import catalogue
from libs.common.contracts.streams import DEAD_LETTERS, Stream
from libs.common.errors import Malformed, TooLarge
from tests.contract.bus.hostile import HOSTILE_PAYLOADS, UNREADABLE, readable_oddities
from tests.contract.bus.parts import Heard, Mesh, soon, until
from tests.recording import RecordingObserver

TOPICS = catalogue().topics
CALLS = catalogue().calls
KEPT = tuple(topic for topic in TOPICS if topic.stream is not None)

NODE = "node-a"

every_topic = pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.subject)
every_kept_topic = pytest.mark.parametrize("topic", KEPT, ids=lambda topic: topic.subject)
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.subject)


def _sample(name: str) -> bytes:
    return (FOLDER / f"{name}.json").read_bytes()


def _wrong_field(sample: bytes) -> bytes:
    """The first field of a message, as something that no field of ours may be at the top: an array of arrays."""
    return b'{"' + sample.split(b'"', 2)[1] + b'": [[["wrong"]]]}'


def _unreadable(sample: bytes) -> list[bytes]:
    return [*UNREADABLE.values(), _wrong_field(sample)]


@every_topic
async def test_a_listener_counts_what_it_cannot_read_and_goes_on(mesh: Mesh, topic: Topic[Any]) -> None:
    sample, heard, observer = _sample(topic.subject), Heard(), RecordingObserver()
    await (await mesh.bus(observer=observer)).subscribe(topic, heard, at_once=1)
    stranger = await mesh.transport("stranger")

    bad = _unreadable(sample)
    for payload in bad:
        await stranger.publish(topic.subject, payload, {})
    await stranger.publish(topic.subject, sample, {})

    assert await heard.next() == decode(topic.message, sample)
    assert observer.unreadable == [topic.subject] * len(bad)
    await until(lambda: len(observer.handled) == len(bad) + 1)
    assert observer.handled[:-1] == [("subscribe", topic.subject, "malformed")] * len(bad)


@every_topic
async def test_a_listener_reads_what_has_something_unknown_beside_it(mesh: Mesh, topic: Topic[Any]) -> None:
    sample, heard = _sample(topic.subject), Heard()
    await (await mesh.bus()).subscribe(topic, heard, at_once=1)
    stranger = await mesh.transport("stranger")

    odd = readable_oddities(sample)
    for payload in odd.values():
        await stranger.publish(topic.subject, payload, {})

    for _ in odd:
        assert await heard.next() == decode(topic.message, sample)


@every_call
async def test_whoever_asks_unreadably_is_told_what_is_wrong(mesh: Mesh, call: Call[Any, Any]) -> None:
    observer = RecordingObserver()
    node_id = NODE if call.per_node else None
    answer = decode(call.reply, _sample(f"{call.subject}.reply"))

    async def serve(request: Message) -> Any:
        return answer

    await (await mesh.bus(observer=observer)).serve(call, serve, node_id=node_id)
    stranger = await mesh.transport("stranger")
    request = _sample(f"{call.subject}.request")

    bad = _unreadable(request)
    for payload in bad:
        told = await soon(stranger.request(call.at(node_id), payload, {}, timeout=4))
        assert told.headers["Nats-Service-Error-Code"] == "422", payload[:100]
        error = decode(ErrorReply, told.payload).error
        assert error.code == "malformed"
        assert error.message.startswith(f"{call.request.__name__} cannot be read: ")
        assert len(error.message) < 600
    told = await soon(stranger.request(call.at(node_id), request, {}, timeout=4))

    assert decode(call.reply, told.payload) == answer
    assert observer.unreadable == [call.subject] * len(bad)


@every_kept_topic
async def test_what_is_durable_and_unreadable_becomes_a_dead_letter(mesh: Mesh, topic: Topic[Any]) -> None:
    stream = await _declared(mesh, topic)
    sample, heard, observer = _sample(topic.subject), Heard(), RecordingObserver()
    bus = await mesh.bus(mesh.durable(), observer)
    start = (await bus.stream_state(stream)).last_sequence
    stranger = await mesh.transport("stranger")
    bad = _unreadable(sample)
    for payload in (*bad, sample):
        await stranger.append(topic.subject, payload, {}, message_id=None, timeout=4)

    async def handle(stored: Stored) -> None:
        if stored.sequence > start and stored.subject == topic.subject:
            await heard(bus.decode(topic, stored))

    consuming = asyncio.create_task(bus.consume(stream, durable=mesh.durable(), handler=handle))
    assert await heard.next() == decode(topic.message, sample)
    await until(lambda: len(observer.dead) == len(bad))
    assert not consuming.done()
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)

    assert observer.dead == [(topic.subject, "malformed")] * len(bad)
    letters = await _letters(bus, found_by=mesh.durable(), count=len(bad))
    assert {(letter.stream, letter.subject) for letter in letters} == {(stream.name, topic.subject)}
    assert sorted(letter.sequence for letter in letters) == list(range(start + 1, start + 1 + len(bad)))


@pytest.mark.parametrize("payload", HOSTILE_PAYLOADS.values(), ids=HOSTILE_PAYLOADS.keys())
@every_call
async def test_no_answer_breaks_on_a_hostile_value_in_any_field(
    mesh: Mesh, call: Call[Any, Any], payload: bytes
) -> None:
    """Each field in turn gets the hostile value. Whatever it is, there is an answer, and it can be read."""
    node_id = NODE if call.per_node else None
    answer = decode(call.reply, _sample(f"{call.subject}.reply"))

    async def serve(request: Message) -> Any:
        request.model_dump_json().encode()
        return answer

    await (await mesh.bus()).serve(call, serve, node_id=node_id)
    stranger = await mesh.transport("stranger")
    for field in call.request.model_fields:
        bad = b'{"' + field.encode() + b'": ' + payload + b"}"
        told = await soon(stranger.request(call.at(node_id), bad, {}, timeout=4))
        if "Nats-Service-Error-Code" in told.headers:
            assert decode(ErrorReply, told.payload).error.code == "malformed"


async def test_a_message_over_the_limit_is_refused_to_its_sender(mesh: Mesh) -> None:
    transport = await mesh.transport()
    for payload in (b"x" * (transport.max_payload + 1), b"[" * (2 * transport.max_payload)):
        with pytest.raises(TooLarge):
            await transport.publish(mesh.subject(), payload, {})
        with pytest.raises(TooLarge):
            await transport.request(mesh.subject(), payload, {}, timeout=2)
    assert transport.problem() is None


async def test_the_letter_about_the_largest_message_fits(mesh: Mesh) -> None:
    await mesh.declare(DEAD_LETTERS)
    stream = await mesh.declare(mesh.stream(max_bytes=8 * 1024 * 1024))
    observer = RecordingObserver()
    bus, stranger = await mesh.bus("reader", observer), await mesh.transport("stranger")
    headers = {f"X-{number}": '"' * 500 for number in range(60)}
    payload = b"\xff" * (stranger.max_payload - 40_000)
    await stranger.append(mesh.subject(), payload, headers, message_id=None, timeout=4)

    async def handle(stored: Stored) -> None:
        bus.decode(mesh.topic(), stored)

    consuming = asyncio.create_task(bus.consume(stream, durable=mesh.durable(), handler=handle))
    await until(lambda: bool(observer.dead))
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)

    stored = await bus.last(DEAD_LETTERS, DEAD_LETTER)
    assert stored is not None
    letter = bus.decode(DEAD_LETTER, stored)
    assert (letter.stream, letter.payload_bytes) == (stream.name, len(payload))
    assert len(letter.payload) == 512 * 1024 // 3 * 4 + 4


async def _declared(mesh: Mesh, topic: Topic[Any]) -> Stream:
    stream = catalogue().stream_of(topic)
    assert stream is not None
    await mesh.declare(DEAD_LETTERS)
    return await mesh.declare(stream)


async def _letters(bus: Bus, *, found_by: str, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(5):
        async for batch in bus.read(DEAD_LETTERS, after=0):
            found.extend(letter for letter in map(_letter, batch) if letter is not None and letter.found_by == found_by)
            if len(found) >= count:
                break
    return found


def _letter(stored: Stored) -> Any:
    """None for what is in the stream of dead letters without being one."""
    try:
        return decode(DEAD_LETTER.message, stored.payload)
    except Malformed:
        return None
