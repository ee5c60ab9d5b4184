"""The wire is damaged in ways that nats-py does not survive: the transport does."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest
from structlog.testing import capture_logs

from libs.common.bus.nats.transport import NatsTransport, connect
from libs.common.bus.transport import Incoming
from libs.common.errors import Disconnected, Malformed
from tests.integration.bus.parts import (
    HASTY,
    LAMPS,
    NUMBERS,
    WORKS_AGAIN_SECONDS,
    append,
    ask,
    echo_through,
    everything_kept,
    in_background,
    numbered,
    until,
)
from tests.integration.bus.wire import Wire, wire_to
from tests.nats_process import NatsProcess, nats_process

ECHO = "test.echo.v1"
UNREADABLE = b"this is no protocol\r\n"
# A header block that is shorter than its own first line: nats-py's reader stops, and looks connected for ever.
STOPS_THE_READER = b"HMSG test.echo.v1 1 8 8\r\nNATS/1.0\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[NatsProcess]:
    with nats_process() as process:
        yield process


@pytest.fixture
async def wire(server: NatsProcess) -> AsyncIterator[Wire]:
    async with wire_to(server.port) as wire:
        yield wire


@pytest.fixture
async def ours(wire: Wire) -> AsyncIterator[NatsTransport]:
    async with connect(wire.url, name="ours", timing=HASTY) as transport:
        await transport.ensure_stream(NUMBERS)
        await transport.ensure_bucket(LAMPS)
        yield transport


@pytest.fixture
async def asker(server: NatsProcess) -> AsyncIterator[NatsTransport]:
    """Talks to the server directly."""
    async with connect(server.url, name="asker") as transport:
        yield transport


class Witness:
    """Hears in every way there is."""

    def __init__(self, ours: NatsTransport, teller: NatsTransport) -> None:
        self._ours = ours
        self._teller = teller
        self._heard: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue()

    async def hear(self, incoming: Incoming) -> None:
        self._heard.put_nowait(("message", incoming.payload))

    async def read(self, after: int) -> None:
        async for batch in self._ours.read(NUMBERS.name, after=after):
            for stored in batch:
                self._heard.put_nowait(("read", stored.payload))

    async def pull(self, durable: str) -> None:
        async for delivery in self._ours.pull(NUMBERS.name, durable=durable):
            await delivery.ack()
            self._heard.put_nowait(("pulled", delivery.message.payload))

    async def watch(self) -> None:
        async for entry in self._ours.watch(LAMPS.name):
            self._heard.put_nowait(("watched", entry.payload))

    async def hears(self, word: bytes) -> None:
        """It is told in every way, and heard in each of them."""
        await self._teller.publish("test.told.v1", word, {})
        await self._teller.append(NUMBERS.subjects[0], word, {}, message_id=None, timeout=5)
        entry = await self._teller.get(LAMPS.name, "hall")
        await self._teller.put(LAMPS.name, "hall", word, revision=entry.revision if entry else 0)
        missing = {(way, word) for way in ("message", "read", "pulled", "watched")}
        async with asyncio.timeout(5):
            while missing:
                missing.discard(await self._heard.get())


DAMAGES: dict[str, Callable[[Wire], None]] = {
    "unreadable": lambda wire: wire.inject(UNREADABLE),
    "reader-stops": lambda wire: wire.inject(STOPS_THE_READER),
    "cut": Wire.cut,
    "half-dead": Wire.swallow,
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_everything_works_again_after(damage: str, wire: Wire, ours: NatsTransport, asker: NatsTransport) -> None:
    """What was subscribed, served, read, pulled and watched goes on; nothing has to be asked for again."""
    witness = Witness(ours, asker)
    await ours.subscribe("test.told.v1", witness.hear)
    await echo_through(ours, ECHO)
    after = (await ours.stream_state(NUMBERS.name)).last_sequence
    async with in_background(witness.read(after), witness.pull(damage), witness.watch()):
        await witness.hears(damage.encode() + b": before")

        DAMAGES[damage](wire)
        await until(lambda: ours.connections == 2)
        connected = time.monotonic()

        await witness.hears(damage.encode() + b": after")
        assert await ask(asker, ECHO) == b"?"
        assert await ask(ours, ECHO) == b"?"
        assert time.monotonic() - connected < WORKS_AGAIN_SECONDS


async def test_appends_on_a_wire_that_keeps_breaking_are_kept_once(wire: Wire, ours: NatsTransport) -> None:
    before = len(await everything_kept(ours))
    numbers, receipts = count(10_000), list[int]()

    async def keep_appending() -> None:
        while True:
            number = next(numbers)
            await append(ours, number)
            receipts.append(number)

    async with in_background(*(keep_appending() for _ in range(32))):
        for damage in (Wire.cut, DAMAGES["unreadable"], Wire.cut, DAMAGES["reader-stops"]):
            connections, had = ours.connections, len(receipts)
            await until(lambda had=had: len(receipts) > had + 100)
            damage(wire)
            await until(lambda connections=connections: ours.connections > connections)
        had = len(receipts)
        await until(lambda: len(receipts) > had + 100)

    kept = Counter((await everything_kept(ours))[before:])
    assert [number for number in receipts if kept[numbered(number)] != 1] == []
    assert max(kept.values()) == 1


async def test_the_reason_of_an_outage_is_logged_once(wire: Wire, ours: NatsTransport) -> None:
    with capture_logs() as lines:
        wire.swallow()
        await until(lambda: ours.connections == 2)
    lost = [line for line in lines if line["event"] == "nats_connection_lost"]
    assert [line["reason"] for line in lost] == ["The nats-server is silent"]


async def test_a_request_in_flight_on_a_wire_that_is_cut_fails_at_once(wire: Wire, ours: NatsTransport) -> None:
    heard = asyncio.Event()

    async def never_answer(_: Incoming) -> None:
        heard.set()

    await ours.subscribe("test.silence.v1", never_answer)
    asking = asyncio.create_task(ask(ours, "test.silence.v1", timeout=60))
    await asyncio.wait_for(heard.wait(), 5)
    wire.cut()

    with pytest.raises(Disconnected):
        await asyncio.wait_for(asking, 1)


async def test_a_subscription_is_known_to_the_server_when_it_is_made(server: NatsProcess, asker: NatsTransport) -> None:
    """Two thousand times: subscribe, and be found by the very next request of somebody else."""
    async with connect(server.url, name="ours") as ours:
        for number in range(2000):
            await echo_through(ours, f"test.found.{number}.v1")
            assert await ask(asker, f"test.found.{number}.v1") == b"?"
            if number % 100 == 99:
                await ours.stop_listening()


async def test_a_subscription_given_up_does_not_harm_the_connection(ours: NatsTransport) -> None:
    """nats-py's reader would stop at the answer to a flush that was cancelled."""
    for number in range(50):
        subscribing = asyncio.create_task(echo_through(ours, f"test.given_up.{number}.v1"))
        await asyncio.sleep(0)
        subscribing.cancel()
        await asyncio.gather(subscribing, return_exceptions=True)
    await echo_through(ours, ECHO)

    assert await ask(ours, ECHO) == b"?"
    assert ours.connections == 1


async def test_what_arrived_before_listening_stopped_is_still_handed_over(
    ours: NatsTransport, asker: NatsTransport
) -> None:
    taken: list[bytes] = []

    async def take(incoming: Incoming) -> None:
        await asyncio.sleep(0)
        taken.append(incoming.payload)

    await ours.subscribe("test.told.v1", take)
    for number in range(500):
        await asker.publish("test.told.v1", numbered(number), {})
    await until(lambda: taken)
    await ours.stop_listening()
    handed_over = len(taken)
    await asker.publish("test.told.v1", b"too late", {})
    await echo_through(ours, ECHO)
    await ask(asker, ECHO)

    assert taken == [numbered(number) for number in range(handed_over)]


async def test_a_subject_that_is_none_is_refused(ours: NatsTransport) -> None:
    for subject in ("", "with space", "line\r\nPUB x 0\r\n"):
        with pytest.raises(Malformed):
            await ours.publish(subject, b"", {})
        with pytest.raises(Malformed):
            await ours.append(subject, b"", {}, message_id=None, timeout=1)
    assert ours.connections == 1


async def test_a_reader_that_misses_a_message_reads_on_from_the_last_it_had(
    wire: Wire, ours: NatsTransport, asker: NatsTransport
) -> None:
    """The server seems to deliver a later message first: the reader takes nothing for granted."""
    read: list[int] = []
    after = (await ours.stream_state(NUMBERS.name)).last_sequence

    async def reading() -> None:
        async for batch in ours.read(NUMBERS.name, after=after):
            read.extend(stored.sequence - after for stored in batch)

    async with in_background(reading()):
        for number in range(20_000, 20_003):
            await append(asker, number)
        await until(lambda: len(read) == 3)
        wire.inject(b"MSG test.numbers.v1 2 $JS.ACK.NUMBERS.reader.1.999999.9.1800000000000000000.0 1\r\n0\r\n")
        for number in range(20_003, 20_006):
            await append(asker, number)
        await until(lambda: len(read) >= 6)

    assert read == [1, 2, 3, 4, 5, 6]
    assert ours.connections == 1
