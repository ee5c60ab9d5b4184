"""What `nats micro ls|info|stats` shows of us."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from libs.common.bus.nats.transport import NatsTransport, connect
from libs.common.bus.transport import Endpoint, Incoming
from libs.common.errors import NobodyAnswers
from tests.integration.bus.parts import ask, until
from tests.nats_process import NatsProcess, nats_process

SLOW_SECONDS = 0.05


@pytest.fixture
def server() -> Iterator[NatsProcess]:
    with nats_process() as process:
        yield process


@pytest.fixture
async def ours(server: NatsProcess) -> AsyncIterator[NatsTransport]:
    async with connect(server.url, name="our service", service_version="1.2.3") as transport:
        tasks: set[asyncio.Task[None]] = set()

        async def answer(incoming: Incoming) -> None:
            await asyncio.sleep(SLOW_SECONDS)
            headers = {"Nats-Service-Error-Code": "404"} if incoming.payload == b"error" else {}
            await transport.publish(str(incoming.reply), incoming.payload, headers)

        async def hand_over(incoming: Incoming) -> None:
            tasks.add(asyncio.create_task(answer(incoming)))

        endpoint = Endpoint(name="ask", subject="test.ask.v1", group="askers", metadata={"summary": "Asks."})
        await transport.serve(endpoint, hand_over)
        yield transport


async def _told(transport: NatsTransport, verb: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await ask(transport, f"$SRV.{verb}.our_service"))
    return answer


async def test_the_service_and_its_endpoints_are_found(ours: NatsTransport) -> None:
    info = await _told(ours, "INFO")
    assert (info["name"], info["version"]) == ("our_service", "1.2.3")
    assert info["endpoints"] == [
        {"name": "ask", "subject": "test.ask.v1", "queue_group": "askers", "metadata": {"summary": "Asks."}}
    ]


async def test_the_figures_are_those_of_the_answers_and_not_of_the_handing_over(ours: NatsTransport) -> None:
    await asyncio.gather(*(ask(ours, "test.ask.v1", word) for word in (b"a", b"b", b"error")))

    (figures,) = (await _told(ours, "STATS"))["endpoints"]
    assert (figures["num_requests"], figures["num_errors"], figures["last_error"]) == (3, 1, "404")
    assert figures["data"] == {"answered": 3}
    assert figures["average_processing_time"] >= SLOW_SECONDS * 1e9


async def test_what_is_started_at_once_counts_as_what_is_handed_over(ours: NatsTransport) -> None:
    waiting: list[Incoming] = []
    started: list[Incoming] = []

    async def hand_over(incoming: Incoming) -> None:
        waiting.append(incoming)
        await ours.publish(str(incoming.reply), b"handed over", {})

    def start(incoming: Incoming) -> bool:
        if incoming.payload == b"full":
            return False
        started.append(incoming)
        answering.append(asyncio.create_task(ours.publish(str(incoming.reply), b"started", {})))
        return True

    answering: list[asyncio.Task[None]] = []
    endpoint = Endpoint(name="start", subject="test.start.v1", group="starters")
    await ours.serve(endpoint, hand_over, start=start)

    assert [await ask(ours, "test.start.v1", word) for word in (b"free", b"full", b"free")] == [
        b"started",
        b"handed over",
        b"started",
    ]
    assert (len(started), len(waiting)) == (2, 1)
    (figures,) = [one for one in (await _told(ours, "STATS"))["endpoints"] if one["name"] == "start"]
    assert (figures["num_requests"], figures["data"]) == (3, {"answered": 3})


async def test_figures_and_identity_outlive_the_server(server: NatsProcess, ours: NatsTransport) -> None:
    await ask(ours, "test.ask.v1")
    before = await _told(ours, "STATS")
    await server.restart_after_kill()
    await until(lambda: ours.connections == 2)
    await ask(ours, "test.ask.v1")

    after = await _told(ours, "STATS")
    assert after["id"] == before["id"]
    assert after["endpoints"][0]["num_requests"] == 2


async def test_nothing_is_shown_any_more_once_listening_has_stopped(ours: NatsTransport, server: NatsProcess) -> None:
    await ours.stop_listening()
    async with connect(server.url, name="asker") as asker:
        with pytest.raises(NobodyAnswers):
            await _told(asker, "INFO")
        with pytest.raises(NobodyAnswers):
            await ask(asker, "test.ask.v1")
