"""What only the twin can show: time and outages in a test's hands."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.streams import matches
from libs.common.bus.memory.transport import MemoryServer, MemoryTransport
from libs.common.bus.observer import SilentObserver
from libs.common.bus.transport import Incoming
from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import DISCOVER, Discover
from libs.common.contracts.streams import WORK_IN, Bucket
from libs.common.contracts.work_marshaling import SUBMIT, WorkItem
from libs.common.errors import Disconnected, TimedOut, Unavailable

T = TypeVar("T")
LEASES = Bucket(name="leases", summary="Who leads.")
ITEM = WorkItem(work_type="chat")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock=clock)


@pytest.fixture
async def transport(server: MemoryServer) -> AsyncIterator[MemoryTransport]:
    async with server.connect("test") as transport:
        await transport.ensure_stream(WORK_IN)
        await transport.ensure_bucket(LEASES)
        yield transport


@pytest.fixture
def bus(transport: MemoryTransport, clock: ManualClock) -> Bus:
    return Bus(transport, name="test", observer=SilentObserver(), clock=clock)


async def soon(wait: Awaitable[T]) -> T:
    return await asyncio.wait_for(wait, 5)


async def settled() -> None:
    """Everything that can run has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_id_is_forgotten_after_its_window(bus: Bus, clock: ManualClock) -> None:
    first = await bus.append(SUBMIT, ITEM, message_id="a")
    clock.advance(WORK_IN.duplicate_window_seconds - 1)
    assert (await bus.append(SUBMIT, ITEM, message_id="a")).duplicate
    clock.advance(1)
    again = await bus.append(SUBMIT, ITEM, message_id="a")

    assert (again.duplicate, again.sequence) == (False, first.sequence + 1)


async def test_a_key_expires_on_the_second(bus: Bus, clock: ManualClock) -> None:
    await bus.put(LEASES, "leader", ITEM, revision=0, ttl_seconds=10)
    clock.advance(9.9)
    assert await bus.get(LEASES, "leader") is not None
    clock.advance(0.1)

    assert await bus.get(LEASES, "leader") is None


async def test_a_watcher_sees_an_expiry_that_nobody_asked_about(bus: Bus, clock: ManualClock) -> None:
    await bus.put(LEASES, "leader", ITEM, revision=0, ttl_seconds=10)
    entries = bus.watch(LEASES)
    assert (await soon(anext(entries))).payload is not None
    expiry = asyncio.ensure_future(anext(entries))
    await settled()
    assert not expiry.done()

    clock.advance(10)

    assert (await soon(expiry)).payload is None


async def test_what_was_not_settled_comes_again_when_its_time_is_over(
    bus: Bus, transport: MemoryTransport, clock: ManualClock
) -> None:
    await bus.append(SUBMIT, ITEM, message_id=None)
    deliveries = transport.pull(WORK_IN.name, durable="worker", ack_wait_seconds=30)
    await soon(anext(deliveries))
    again = asyncio.ensure_future(anext(deliveries))
    await settled()
    clock.advance(29)
    await settled()
    assert not again.done()

    clock.advance(1)

    assert (await soon(again)).delivered == 2


async def test_a_long_handler_keeps_its_message(bus: Bus, transport: MemoryTransport, clock: ManualClock) -> None:
    """The bus says for it that it is being worked on."""
    await bus.append(SUBMIT, ITEM, message_id=None)
    started, release, handled = asyncio.Event(), asyncio.Event(), []

    async def slow(stored: Any) -> None:
        handled.append(stored.sequence)
        started.set()
        await release.wait()

    consuming = asyncio.create_task(bus.consume(WORK_IN, durable="worker", handler=slow))
    await soon(started.wait())
    for _ in range(12):
        clock.advance(10)
        await settled()
    release.set()
    await settled()
    clock.advance(60)
    await settled()
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)

    assert handled == [1]


async def test_a_message_that_was_declined_holds_up_no_other(bus: Bus, clock: ManualClock) -> None:
    """While it is kept back for a pause, which ends only when the clock is advanced."""
    handled: asyncio.Queue[int] = asyncio.Queue()
    for _ in range(3):
        await bus.append(SUBMIT, ITEM, message_id=None)

    async def decline(stored: Any) -> None:
        handled.put_nowait(stored.sequence)
        raise Unavailable("not now")

    consuming = asyncio.create_task(bus.consume(WORK_IN, durable="worker", handler=decline, at_once=1))
    assert [await soon(handled.get()) for _ in range(3)] == [1, 2, 3]
    await settled()
    assert handled.empty()
    clock.advance(1)
    assert sorted([await soon(handled.get()) for _ in range(3)]) == [1, 2, 3]
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)


async def test_an_answer_is_waited_for_as_long_as_was_said(transport: MemoryTransport, clock: ManualClock) -> None:
    async def ignore(incoming: Incoming) -> None:
        return None

    await transport.subscribe("silent.v1", ignore)
    asking = asyncio.ensure_future(transport.request("silent.v1", b"", {}, timeout=2))
    await settled()
    clock.advance(1.9)
    await settled()
    assert not asking.done()

    clock.advance(0.1)

    with pytest.raises(TimedOut):
        await soon(asking)


async def test_while_the_server_is_away_nothing_can_be_sent(bus: Bus, server: MemoryServer) -> None:
    server.stop()

    assert bus.problem() is not None
    with pytest.raises(Disconnected):
        await bus.publish(DISCOVER, Discover(asked_by="test"))
    with pytest.raises(Disconnected):
        await bus.get(LEASES, "leader")


async def test_an_append_waits_for_the_server_to_come_back(bus: Bus, server: MemoryServer, clock: ManualClock) -> None:
    server.stop()
    appending = asyncio.ensure_future(bus.append(SUBMIT, ITEM, message_id="a", timeout=10))
    await settled()
    clock.advance(9)
    server.start()

    assert (await soon(appending)).sequence == 1
    assert bus.problem() is None


async def test_an_append_does_not_wait_longer_than_it_was_told(
    bus: Bus, server: MemoryServer, clock: ManualClock
) -> None:
    server.stop()
    appending = asyncio.ensure_future(bus.append(SUBMIT, ITEM, message_id="a", timeout=10))
    await settled()
    clock.advance(10)

    with pytest.raises(Disconnected):
        await soon(appending)


async def test_an_outage_shows_in_the_number_of_connections(bus: Bus, server: MemoryServer) -> None:
    before = bus.connections
    server.stop()
    server.start()

    assert bus.connections == before + 1


async def test_reading_goes_on_after_an_outage(bus: Bus, server: MemoryServer) -> None:
    reading = bus.read(WORK_IN, after=0)
    await bus.append(SUBMIT, ITEM, message_id=None)
    assert [stored.sequence for stored in await soon(anext(reading))] == [1]
    server.stop()
    further = asyncio.ensure_future(anext(reading))
    await settled()
    server.start()
    await bus.append(SUBMIT, ITEM, message_id=None)

    assert [stored.sequence for stored in await soon(further)] == [2]


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_patterns_cover_subjects(pattern: str, subject: str, covered: bool) -> None:
    assert matches(pattern, subject) is covered
