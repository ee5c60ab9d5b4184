"""A server that comes back without what it kept: everything declared is there again, and readers are told."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, cast

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.nats.transport import connect as connect_nats
from libs.common.bus.transport import Entry, Stored, StreamMadeAnew, Transport
from libs.common.clock import SystemClock
from libs.common.contracts.streams import Bucket
from tests.contract.bus.parts import Mesh, Note, soon
from tests.nats_process import nats_process
from tests.recording import RecordingObserver

LAMPS = Bucket(name="LAMPS", summary="Which lamps are lit.")


class Forgetful(Mesh):
    """`lose_everything` takes the server away and brings it back with an empty disk."""

    lose_everything: Callable[[], Awaitable[None]]

    def bus_on(self, transport: Transport) -> Bus:
        """On the connection that declared what it uses, as every service does."""
        return Bus(transport, name="someone", observer=RecordingObserver(), clock=SystemClock())


@pytest.fixture(params=["memory", "nats"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Forgetful]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            memory = MemoryServer(clock=SystemClock())

            async def lose_everything() -> None:
                memory.stop()
                memory.start(emptied=True)

            mesh = Forgetful(memory.connect, stack)
        else:
            nats = stack.enter_context(nats_process())

            async def lose_everything() -> None:
                nats.kill()
                shutil.rmtree(nats.directory / "jetstream")
                await asyncio.to_thread(nats.start)

            mesh = Forgetful(lambda name: connect_nats(nats.url, name=name), stack)
        mesh.lose_everything = lose_everything
        yield mesh


async def test_what_was_declared_takes_messages_again(mesh: Forgetful) -> None:
    transport, topic = await mesh.transport(), mesh.topic()
    await transport.ensure_stream(mesh.stream())
    bus = await mesh.bus()
    await bus.append(topic, Note(text="before"), message_id=None)

    await mesh.lose_everything()
    receipt = await bus.append(topic, Note(text="after"), message_id=None)

    assert receipt.sequence == 1
    assert transport.made_again == 1
    assert transport.problem() is None


async def test_a_stream_that_was_made_anew_tells_so_by_when_it_was_made(mesh: Forgetful) -> None:
    transport, stream = await mesh.transport(), mesh.stream()
    await transport.ensure_stream(stream)
    before = await transport.stream_state(stream.name)

    await mesh.lose_everything()

    assert (await soon(transport.stream_state(stream.name))).created > before.created


async def test_who_reads_a_stream_learns_that_it_was_made_anew(mesh: Forgetful) -> None:
    transport, stream, topic = await mesh.transport(), mesh.stream(), mesh.topic()
    await transport.ensure_stream(stream)
    bus = mesh.bus_on(transport)
    for number in range(3):
        await bus.append(topic, Note(text=str(number)), message_id=None)
    read: list[Stored] = []

    async def follow() -> None:
        async with aclosing(cast(Any, transport.read(stream.name, after=0))) as batches:
            async for batch in batches:
                read.extend(batch)

    following = asyncio.create_task(follow())
    while len(read) < 3:
        await asyncio.sleep(0.01)
    await mesh.lose_everything()

    with pytest.raises(StreamMadeAnew):
        await soon(following)


async def test_a_durable_consumer_goes_on_with_what_is_new(mesh: Forgetful) -> None:
    transport, stream, topic = await mesh.transport(), mesh.stream(), mesh.topic()
    await transport.ensure_stream(stream)
    bus, told = mesh.bus_on(transport), asyncio.Queue[str]()

    async def take(stored: Stored) -> None:
        told.put_nowait(bus.decode(topic, stored).text)

    consuming = asyncio.create_task(bus.consume(stream, durable=mesh.durable(), handler=take))
    await bus.append(topic, Note(text="before"), message_id=None)
    assert await soon(told.get()) == "before"

    await mesh.lose_everything()
    await bus.append(topic, Note(text="after"), message_id=None)

    assert await soon(told.get()) == "after"
    consuming.cancel()
    with suppress(asyncio.CancelledError):
        await consuming


async def test_who_watches_a_bucket_is_told_what_vanished_and_what_is_written_again(mesh: Forgetful) -> None:
    transport = await mesh.transport()
    await transport.ensure_bucket(LAMPS)
    told: asyncio.Queue[Entry] = asyncio.Queue()

    async def watch() -> None:
        async for entry in transport.watch(LAMPS.name):
            told.put_nowait(entry)

    watching = asyncio.create_task(watch())
    await transport.put(LAMPS.name, "hall", b"on", revision=0)
    assert (await soon(told.get())).payload == b"on"

    await mesh.lose_everything()
    vanished = await soon(told.get())
    await transport.put(LAMPS.name, "hall", b"off", revision=0)
    written = await soon(told.get())

    assert (vanished.key, vanished.payload) == ("hall", None)
    assert (written.key, written.payload, written.revision) == ("hall", b"off", 1)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_a_key_with_the_revision_that_it_had_before_is_told_again(mesh: Forgetful) -> None:
    transport = await mesh.transport()
    await transport.ensure_bucket(LAMPS)
    told: dict[str, bytes | None] = {}

    async def watch() -> None:
        async for entry in transport.watch(LAMPS.name):
            told[entry.key] = entry.payload

    watching = asyncio.create_task(watch())
    await transport.put(LAMPS.name, "hall", b"on", revision=0)
    while told != {"hall": b"on"}:
        await asyncio.sleep(0.01)

    await mesh.lose_everything()
    await transport.put(LAMPS.name, "hall", b"off", revision=0)

    async with asyncio.timeout(5):
        while told != {"hall": b"off"}:
            await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
