"""The server is killed, comes back, or does not: what was promised stays true."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import count

import pytest

from libs.common.bus.nats.transport import NatsTransport, connect
from libs.common.bus.transport import Entry
from libs.common.errors import Disconnected, NobodyAnswers, TimedOut
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
from tests.integration.bus.wire import black_hole
from tests.nats_process import NatsProcess, nats_process

APPENDING = 32
ECHO = "test.echo.v1"


@pytest.fixture
def server() -> Iterator[NatsProcess]:
    with nats_process() as process:
        yield process


@pytest.fixture
async def ours(server: NatsProcess) -> AsyncIterator[NatsTransport]:
    async with connect(server.url, name="ours", timing=HASTY) as transport:
        await transport.ensure_stream(NUMBERS)
        yield transport


class Load:
    """Everything that goes on while the server is killed, and what was seen of it."""

    def __init__(self, ours: NatsTransport, asker: NatsTransport) -> None:
        self._ours = ours
        self._asker = asker
        self._numbers = count()
        self.receipts: list[int] = []
        self.read: list[int] = []
        self.watched: list[Entry] = []
        self.answers = 0

    def parts(self) -> list[object]:
        return [*(self._append() for _ in range(APPENDING)), self._read(), self._watch(), self._ask()]

    async def _append(self) -> None:
        while True:
            number = next(self._numbers)
            await append(self._ours, number)
            self.receipts.append(number)

    async def _read(self) -> None:
        async for batch in self._ours.read(NUMBERS.name, after=0):
            self.read += [stored.sequence for stored in batch]

    async def _watch(self) -> None:
        async for entry in self._ours.watch(LAMPS.name):
            self.watched.append(entry)

    async def _ask(self) -> None:
        while True:
            try:
                await ask(self._asker, ECHO, timeout=1.0)
                self.answers += 1
            except (Disconnected, NobodyAnswers, TimedOut):
                await asyncio.sleep(0.01)


async def test_killed_under_load_nothing_that_was_promised_is_lost_or_doubled(server: NatsProcess) -> None:
    async with (
        connect(server.url, name="ours") as ours,
        connect(server.url, name="asker") as asker,
    ):
        await ours.ensure_stream(NUMBERS)
        await ours.ensure_bucket(LAMPS)
        await echo_through(ours, ECHO)
        revision = await ours.put(LAMPS.name, "hall", b"0", revision=0)
        load = Load(ours, asker)
        async with in_background(*load.parts()):
            for kill in range(1, 4):
                receipts = len(load.receipts)
                await until(lambda before=receipts: len(load.receipts) > before + 300)

                await server.restart_after_kill()
                revision = await _all_works_again(load, ours, kill, revision)

        kept = Counter(await everything_kept(ours))
        assert [number for number in load.receipts if kept[numbered(number)] != 1] == []
        assert [number for number, times in kept.items() if times > 1] == []
        assert load.read == list(range(1, len(load.read) + 1))
        assert len(load.read) >= len(load.receipts) - 2 * APPENDING


async def _all_works_again(load: Load, ours: NatsTransport, kill: int, revision: int) -> int:
    """Within the time that is promised, counted from the moment at which the port accepts."""
    returned = time.monotonic()
    receipts, read, answers = len(load.receipts), len(load.read), load.answers
    revision = await ours.put(LAMPS.name, "hall", numbered(kill), revision=revision)
    await until(lambda: load.watched[-1].revision == revision)
    await until(lambda: len(load.receipts) > receipts + APPENDING)
    await until(lambda: len(load.read) > read)
    await until(lambda: load.answers > answers)
    assert time.monotonic() - returned < WORKS_AGAIN_SECONDS
    return revision


async def test_an_append_outlives_the_server(server: NatsProcess, ours: NatsTransport) -> None:
    server.kill()
    await until(ours.problem)
    appending = asyncio.create_task(append(ours, 1))
    await asyncio.to_thread(server.start)

    assert await appending == 1


async def test_an_append_whose_receipt_was_lost_is_kept_once(server: NatsProcess, ours: NatsTransport) -> None:
    appending = [asyncio.create_task(append(ours, number)) for number in range(500)]
    await until(lambda: any(task.done() for task in appending))
    await server.restart_after_kill()
    sequences = await asyncio.gather(*appending)

    assert sorted(sequences) == list(range(1, 501))
    assert Counter(await everything_kept(ours)) == Counter(numbered(number) for number in range(500))


async def test_a_request_in_flight_fails_at_once(server: NatsProcess, ours: NatsTransport) -> None:
    heard = asyncio.Event()

    async def never_answer(_: object) -> None:
        heard.set()

    await ours.subscribe("test.silence.v1", never_answer)
    asking = asyncio.create_task(ask(ours, "test.silence.v1", timeout=60))
    await asyncio.wait_for(heard.wait(), 5)
    server.kill()

    with pytest.raises(Disconnected):
        await asyncio.wait_for(asking, 1)


async def test_calls_wait_for_the_server_and_say_when_it_stays_away(server: NatsProcess, ours: NatsTransport) -> None:
    server.kill()
    await until(ours.problem)

    with pytest.raises(Disconnected, match="no connection"):
        await ask(ours, "test.anything.v1", timeout=0.3)
    with pytest.raises(Disconnected, match="no connection"):
        await append(ours, 1, timeout=0.3)
    with pytest.raises(Disconnected, match="no connection"):
        await ours.publish("test.anything.v1", b"", {})


async def test_a_request_made_while_the_server_is_away_is_answered_when_it_is_back(
    server: NatsProcess, ours: NatsTransport
) -> None:
    await echo_through(ours, ECHO)
    server.kill()
    await until(ours.problem)
    asking = asyncio.create_task(ask(ours, ECHO, b"still there?", timeout=10))
    await asyncio.to_thread(server.start)

    assert await asking == b"still there?"


async def test_connections_are_counted(server: NatsProcess, ours: NatsTransport) -> None:
    assert ours.connections == 1
    await server.restart_after_kill()
    await until(lambda: ours.connections == 2)
    assert ours.problem() is None


async def test_nobody_answers_is_said_at_once(ours: NatsTransport) -> None:
    with pytest.raises(NobodyAnswers):
        await asyncio.wait_for(ask(ours, "test.nobody.v1", timeout=60), 1)


async def test_an_append_that_no_stream_keeps_is_tried_until_its_time_is_over(ours: NatsTransport) -> None:
    with pytest.raises(NobodyAnswers, match="No stream keeps"):
        await ours.append("test.unkept.v1", b"", {}, message_id=None, timeout=0.6)


async def test_a_stream_declared_in_time_takes_the_append_that_waits_for_it(server: NatsProcess) -> None:
    async with connect(server.url, name="early") as early:
        appending = asyncio.create_task(append(early, 1))
        await asyncio.sleep(0)
        await early.ensure_stream(NUMBERS)
        assert await appending == 1


@pytest.mark.parametrize("state", ["connected", "killed", "busy"])
async def test_leaving_takes_half_a_second_at_most_and_leaves_no_task(server: NatsProcess, state: str) -> None:
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(connect(server.url, name="leaving"))
        await ours.ensure_stream(NUMBERS)
        await echo_through(ours, ECHO)
        reading = asyncio.create_task(anext(aiter(ours.read(NUMBERS.name, after=0))))
        if state != "connected":
            server.kill()
            await until(ours.problem)
        appending = [asyncio.create_task(append(ours, number)) for number in range(10 if state == "busy" else 0)]
        await asyncio.sleep(0)
        left = time.monotonic()
    assert time.monotonic() - left < 0.5

    outcomes = await asyncio.wait_for(asyncio.gather(reading, *appending, return_exceptions=True), 1)
    assert {type(outcome) for outcome in outcomes} == {Disconnected}
    assert asyncio.all_tasks() == before


async def test_waiting_for_a_first_connection_can_be_cancelled_at_any_time(server: NatsProcess) -> None:
    server.kill()
    before = asyncio.all_tasks()
    async with black_hole() as silent:
        for url in (server.url, silent):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), connect(url, name="waiting"):
                    raise AssertionError("there is no server")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
