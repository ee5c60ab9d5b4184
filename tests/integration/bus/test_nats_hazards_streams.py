"""What a stream refuses, and what the server does to those who read it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from libs.common.bus.nats.pulling import ticket
from libs.common.bus.nats.transport import NatsTransport, connect
from libs.common.bus.transport import Entry, Expect, Receipt
from libs.common.contracts.streams import MIB, Stream
from libs.common.errors import Conflict, NotFound, StreamFull, TooLarge, WrongRevision
from tests.integration.bus.parts import HASTY, LAMPS, NUMBERS, append, everything_kept, in_background, numbered, until
from tests.integration.bus.wire import Wire, wire_to
from tests.nats_process import NatsProcess, nats_process

SMALL = Stream(name="SMALL", subjects=("test.small.v1",), max_bytes=512 * MIB, summary="Small.")


@pytest.fixture(params=[False, True], ids=["ack v1", "ack v2"])
def server(request: pytest.FixtureRequest) -> Iterator[NatsProcess]:
    """Both forms of acknowledging subjects: nats-py's own reader stops at the newer one."""
    with nats_process(ack_v2=request.param) as process:
        yield process


@pytest.fixture
async def ours(server: NatsProcess) -> AsyncIterator[NatsTransport]:
    async with connect(server.url, name="ours", timing=HASTY, max_bytes={SMALL.name: 64 * 1024}) as transport:
        await transport.ensure_stream(NUMBERS)
        await transport.ensure_bucket(LAMPS)
        yield transport


async def test_reading_pulling_and_watching_work_with_either_form(ours: NatsTransport) -> None:
    await asyncio.gather(*(append(ours, number) for number in range(2000)))
    assert len(set(await everything_kept(ours))) == 2000

    pulled: list[int] = []
    async with aclosing(cast(Any, ours.pull(NUMBERS.name, durable="puller", batch=100))) as deliveries:
        while len(pulled) < 2000:
            delivery = await asyncio.wait_for(anext(deliveries), 5)
            assert delivery.delivered == 1
            await delivery.ack()
            pulled.append(delivery.message.sequence)
    assert pulled == list(range(1, 2001))

    revision = await ours.put(LAMPS.name, "hall", b"on", revision=0)
    async with aclosing(cast(Any, ours.watch(LAMPS.name))) as entries:
        assert await asyncio.wait_for(anext(entries), 5) == Entry(key="hall", payload=b"on", revision=revision)
    assert ours.connections == 1


async def test_a_full_stream_refuses_and_keeps_what_it_has(ours: NatsTransport) -> None:
    await ours.ensure_stream(SMALL)
    receipts: list[Receipt] = []

    async def fill() -> None:
        while True:
            receipts.append(await ours.append(SMALL.subjects[0], b"x" * 1000, {}, message_id=None, timeout=5))

    with pytest.raises(StreamFull):
        await fill()
    state = await ours.stream_state(SMALL.name)
    assert (state.messages, state.first_sequence, state.max_bytes) == (len(receipts), 1, 64 * 1024)


async def test_what_is_too_large_is_refused_before_it_is_sent(ours: NatsTransport) -> None:
    limit = ours.max_payload
    for headers, payload in (({}, b"x" * (limit + 1)), ({"X": "y" * 1000}, b"x" * (limit - 500))):
        with pytest.raises(TooLarge):
            await ours.publish("test.told.v1", payload, headers)
        with pytest.raises(TooLarge):
            await ours.request("test.told.v1", payload, headers, timeout=1)
        with pytest.raises(TooLarge):
            await ours.append(NUMBERS.subjects[0], payload, headers, message_id=None, timeout=1)
    await ours.publish("test.told.v1", b"x" * limit, {})
    assert await append(ours, 1) == 1
    assert ours.connections == 1


async def test_many_large_appends_stay_within_bounds(ours: NatsTransport) -> None:
    payload = b"x" * 900_000
    receipts = await asyncio.gather(
        *(ours.append(NUMBERS.subjects[0], payload, {}, message_id=str(n), timeout=30) for n in range(100))
    )
    assert sorted(receipt.sequence for receipt in receipts) == list(range(1, 101))


async def test_the_caller_s_headers_are_left_alone(ours: NatsTransport) -> None:
    headers = {"X": "y"}
    await ours.append(NUMBERS.subjects[0], b"", headers, message_id="a", expect=Expect(sequence=0), timeout=5)
    assert headers == {"X": "y"}


async def test_a_moved_fence_refuses_and_a_repetition_is_recognised(ours: NatsTransport) -> None:
    subject = NUMBERS.subjects[0]
    first = await ours.append(subject, b"a", {}, message_id="a", expect=Expect(sequence=0), timeout=5)
    await ours.append(subject, b"b", {}, message_id="b", expect=Expect(sequence=first.sequence), timeout=5)

    with pytest.raises(WrongRevision):
        await ours.append(subject, b"c", {}, message_id="c", expect=Expect(sequence=first.sequence), timeout=5)
    again = await ours.append(subject, b"a", {}, message_id="a", expect=Expect(sequence=0), timeout=5)
    assert (again.sequence, again.duplicate) == (first.sequence, True)


async def test_what_cannot_be_changed_about_a_stream_is_named(ours: NatsTransport) -> None:
    await _raw(ours, "STREAM.CREATE.MEMORY", {"name": "MEMORY", "subjects": ["test.m.v1"], "storage": "memory"})
    stream = Stream(name="MEMORY", subjects=("test.m.v1",), max_bytes=MIB, summary="In memory.")
    with pytest.raises(Conflict, match="storage is 'memory', not 'file'"):
        await ours.ensure_stream(stream)


async def test_a_stream_that_is_there_stays_as_it_is_for_whoever_does_not_own_it(ours: NatsTransport) -> None:
    sized = Stream(name="SIZED", subjects=("test.sized.v1",), max_bytes=3 * MIB, summary="Sized.")
    larger = replace(sized, max_bytes=4 * MIB)
    await ours.ensure_stream(sized, change=False)
    await ours.ensure_stream(larger, change=False)
    assert (await ours.stream_state(sized.name)).max_bytes == 3 * MIB
    await ours.ensure_stream(larger)
    assert (await ours.stream_state(sized.name)).max_bytes == 4 * MIB


async def test_streams_that_would_share_a_subject_are_refused(ours: NatsTransport) -> None:
    with pytest.raises(Conflict, match="overlap"):
        await ours.ensure_stream(replace(NUMBERS, name="OTHER"))


async def test_reading_a_stream_that_is_none_says_so(ours: NatsTransport) -> None:
    with pytest.raises(NotFound):
        await asyncio.wait_for(anext(aiter(ours.read("NONE", after=0))), 5)
    with pytest.raises(NotFound):
        await ours.stream_state("NONE")


async def test_a_reader_leaves_no_consumer_behind(ours: NatsTransport) -> None:
    await append(ours, 1)
    assert await everything_kept(ours) == [b"1"]

    async with asyncio.timeout(5):
        while (await _raw(ours, f"STREAM.INFO.{NUMBERS.name}", None))["state"]["consumer_count"]:
            await asyncio.sleep(0.01)


async def test_a_reader_whose_consumer_was_deleted_goes_on(ours: NatsTransport) -> None:
    read: list[bytes] = []

    async def reading() -> None:
        async for batch in ours.read(NUMBERS.name, after=0):
            read.extend(stored.payload for stored in batch)

    async with in_background(reading()):
        for number in range(4):
            await append(ours, number)
            await until(lambda number=number: len(read) == number + 1)
            names = (await _raw(ours, f"CONSUMER.NAMES.{NUMBERS.name}", {}))["consumers"]
            await _raw(ours, f"CONSUMER.DELETE.{NUMBERS.name}.{names[0]}", None)
    assert read == [numbered(number) for number in range(4)]


async def test_what_was_purged_is_passed_over(ours: NatsTransport) -> None:
    await asyncio.gather(*(append(ours, number) for number in range(100)))
    await ours.purge(NUMBERS.name, below=91)
    async with aclosing(cast(Any, ours.read(NUMBERS.name, after=0))) as batches:
        batch = await asyncio.wait_for(anext(batches), 5)
    assert [stored.sequence for stored in batch] == list(range(91, 91 + len(batch)))


async def test_a_watch_tells_of_keys_that_vanished_while_it_could_not_hear(server: NatsProcess) -> None:
    async with (
        wire_to(server.port) as wire,
        connect(wire.url, name="watcher", timing=HASTY) as watcher,
        connect(server.url, name="ours") as ours,
    ):
        await ours.ensure_bucket(LAMPS)
        revisions = {key: await ours.put(LAMPS.name, key, b"on", revision=0) for key in ("hall", "attic", "cellar")}
        async with aclosing(cast(Any, watcher.watch(LAMPS.name))) as entries:
            assert {(await anext(entries)).key for _ in revisions} == set(revisions)

            await _while_cut_off(wire, watcher, _change(ours, revisions))

            changes = [await asyncio.wait_for(anext(entries), 5) for _ in range(2)]
    assert {(entry.key, entry.payload) for entry in changes} == {("hall", None), ("attic", b"off")}


async def _change(ours: NatsTransport, revisions: dict[str, int]) -> None:
    """One key goes without leaving a trace, one changes, one stays."""
    await ours.put(LAMPS.name, "attic", b"off", revision=revisions["attic"])
    await _raw(ours, f"STREAM.PURGE.KV_{LAMPS.name}", {"filter": f"$KV.{LAMPS.name}.hall"})


async def _while_cut_off(wire: Wire, transport: NatsTransport, change: Any) -> None:
    wire.refuses = True
    wire.cut()
    await until(transport.problem)
    await change
    wire.refuses = False


async def _raw(transport: NatsTransport, verb: str, request: dict[str, Any] | None) -> dict[str, Any]:
    payload = b"" if request is None else json.dumps(request).encode()
    answer = await transport.request(f"$JS.API.{verb}", payload, {}, timeout=5)
    decoded: dict[str, Any] = json.loads(answer.payload)
    assert "error" not in decoded, decoded
    return decoded


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.NUMBERS.reader.1.5.3.1800000000000000000.7",
        "$JS.ACK._.hash.NUMBERS.reader.1.5.3.1800000000000000000.7",
        "$JS.ACK.hub.hash.NUMBERS.reader.1.5.3.1800000000000000000.7.token",
    ],
)
def test_every_form_of_an_acknowledging_subject_is_read(reply: str) -> None:
    told = ticket(reply)
    assert (told.stream, told.delivered, told.sequence, told.consumer_sequence) == ("NUMBERS", 1, 5, 3)
    assert (told.nanoseconds, told.pending) == (1_800_000_000_000_000_000, 7)
