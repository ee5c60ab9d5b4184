"""A process full of services: brought up together, taken down in order, never half dead."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import APIRouter

from libs.common.bus.bus import Bus
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.errors import WrongSetting
from libs.common.kit.process import ServiceFailed
from libs.common.kit.runner import main_of, run
from libs.common.kit.service import Platform, Service
from tests.unit.kit.services import ECHO, Running, Word, service
from tools.free_ports import free_port


@pytest.fixture
def mesh(tmp_path: Path) -> Running:
    return Running(str(tmp_path / "data"))


async def test_every_service_of_a_process_gets_its_own_door_and_the_same_node(mesh: Running) -> None:
    ports, platforms = [free_port(), free_port()], []
    builds = {f"service_{n}": service(port=port, platforms=platforms) for n, port in enumerate(ports)}
    async with mesh.up(builds), httpx.AsyncClient() as client:
        told = [(await client.get(f"http://127.0.0.1:{port}/version")).json() for port in ports]
        ready = await client.get(f"http://127.0.0.1:{ports[0]}/readyz")
    assert [each["service"] for each in told] == ["service_0", "service_1"]
    assert told[0]["node_id"] == told[1]["node_id"] == platforms[0].node_id
    assert told[0]["boot_id"] == told[1]["boot_id"]
    assert ready.json() == {"ready": True, "checks": {"nats": "ok"}}


async def test_only_the_first_service_of_a_process_tells_of_the_process(mesh: Running) -> None:
    ports = [free_port(), free_port()]
    builds = {f"service_{n}": service(port=port) for n, port in enumerate(ports)}
    async with mesh.up(builds), httpx.AsyncClient() as client:
        first, second = [(await client.get(f"http://127.0.0.1:{port}/metrics")).text for port in ports]
    assert "process_resident_memory_bytes" in first
    assert "process_resident_memory_bytes" not in second
    assert "mesh_nats_connected 1.0" in second


async def test_a_crashed_loop_ends_the_process_and_names_service_loop_and_reason(mesh: Running) -> None:
    async def count_down() -> None:
        raise ZeroDivisionError("none left")

    with structlog.testing.capture_logs() as lines:
        await mesh.run({"healthy": service(), "broken": service(loops=[count_down])})
    assert isinstance(mesh.failure, ServiceFailed)
    errors = [line for line in lines if line["log_level"] == "error"]
    assert len(errors) == 1
    assert errors[0]["service"] == "broken"
    assert errors[0]["part"].endswith("count_down")
    assert errors[0]["reason"] == "ZeroDivisionError: none left"


async def test_a_loop_that_returns_counts_as_crashed(mesh: Running) -> None:
    async def ends() -> None:
        return None

    await mesh.run({"tired": service(loops=[ends])})
    assert mesh.failure is not None
    assert mesh.failure.message.endswith("it returned, but it must run for ever")


async def test_a_service_that_cannot_start_ends_the_process(mesh: Running) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OSError("no such disk")
        yield

    with structlog.testing.capture_logs() as lines:
        await mesh.run({"healthy": service(), "broken": service(lifespan=broken)})
    assert isinstance(mesh.failure, ServiceFailed)
    assert [line["reason"] for line in lines if line["event"] == "service_failed"] == ["OSError: no such disk"]


async def test_taken_ports_are_all_named_before_any_service_starts(mesh: Running) -> None:
    entered = False

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        nonlocal entered
        entered = True
        yield

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        await mesh.run({"other": service(lifespan=lifespan), "node_registry": service(port=port)})
    assert isinstance(mesh.failure, WrongSetting)
    expected = f"Port {port} on 127.0.0.1 is taken by another program; stop it or set NODE_REGISTRY_PORT."
    assert mesh.failure.message == expected
    assert not entered


async def test_shutdown_goes_in_the_reverse_order_of_the_start(mesh: Running) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        told.append("lifespan opened")
        yield
        told.append("lifespan closed")

    async def subscribe(_: Platform) -> None:
        told.append("subscribed")

    async def loop() -> None:
        told.append("loop started")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("loop ended")

    async with mesh.up({"orderly": service(lifespan=lifespan, subscriptions=subscribe, loops=[loop])}):
        pass
    assert mesh.failure is None
    assert told == ["lifespan opened", "subscribed", "loop started", "loop ended", "lifespan closed"]


async def test_what_is_in_hand_is_finished_before_the_end(mesh: Running) -> None:
    entered, go_on, router = asyncio.Event(), asyncio.Event(), APIRouter()

    async def echo(word: Word) -> Word:
        entered.set()
        await go_on.wait()
        return word

    @router.get("/ask")
    async def ask() -> str:
        return "unused"

    async def serve(platform: Platform) -> None:
        await platform.bus.serve(ECHO, echo)

    async with mesh.server.connect("asker") as transport:
        bus = Bus(transport, name="asker", observer=SilentObserver(), clock=SystemClock())
        async with mesh.up({"echo": service(subscriptions=serve, router=router)}):
            asked = asyncio.create_task(bus.request(ECHO, Word(text="hello"), timeout=10))
            await entered.wait()
            mesh.stop.set()
            go_on.set()
        assert (await asked).text == "hello"


async def test_a_handler_that_does_not_end_is_cut_short_at_the_deadline(mesh: Running) -> None:
    entered = asyncio.Event()

    async def hangs(word: Word) -> Word:
        entered.set()
        await asyncio.Event().wait()
        return word

    async def serve(platform: Platform) -> None:
        await platform.bus.serve(ECHO, hangs)

    async with mesh.server.connect("asker") as transport:
        bus = Bus(transport, name="asker", observer=SilentObserver(), clock=SystemClock())
        started = asyncio.get_running_loop().time()
        async with mesh.up({"echo": service(subscriptions=serve)}, SHUTDOWN_SECONDS="0.2"):
            asked = asyncio.create_task(bus.request(ECHO, Word(text="hello"), timeout=10))
            await entered.wait()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    assert asyncio.get_running_loop().time() - started < 5
    assert mesh.failure is None


async def test_stopping_before_the_start_is_over_ends_at_once(mesh: Running) -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        mesh.stop.set()
        await asyncio.Event().wait()
        yield

    async with asyncio.timeout(3):
        await mesh.run({"slow": service(lifespan=slow)})
    assert mesh.failure is None


async def test_readiness_waits_for_the_checks_and_names_nats_while_it_is_away(mesh: Running) -> None:
    port = free_port()
    async with mesh.up({"one": service(port=port)}), httpx.AsyncClient() as client:
        mesh.server.stop()
        away = await client.get(f"http://127.0.0.1:{port}/readyz")
        alive = await client.get(f"http://127.0.0.1:{port}/healthz")
        mesh.server.start()
        back = await client.get(f"http://127.0.0.1:{port}/readyz")
    assert (away.status_code, away.json()["ready"]) == (503, False)
    assert away.json()["checks"]["nats"] != "ok"
    assert alive.status_code == 200
    assert back.status_code == 200


async def test_before_nats_was_reached_the_doors_tell_why_and_everything_else_is_declined(mesh: Running) -> None:
    port, router = free_port(), APIRouter()
    router.add_api_route("/api/v1/words", lambda: ["one"])
    mesh.server.stop()
    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        tasks.create_task(mesh.run({"one": service(port=port, router=router)}))
        told = {path: await _answer(client, path) for path in ("/healthz", "/readyz", "/metrics", "/api/v1/words")}
        mesh.server.start()
        async with asyncio.timeout(5):
            await mesh.ready.wait()
        words = await client.get("/api/v1/words")
        mesh.stop.set()
    assert mesh.failure is None
    assert {path: answer.status_code for path, answer in told.items()} == {
        "/healthz": 200,
        "/readyz": 503,
        "/metrics": 200,
        "/api/v1/words": 503,
    }
    checks = told["/readyz"].json()["checks"]
    assert re.fullmatch(r"the in-memory server is stopped \(since \d{4}-\d\d-\d\dT.*Z\)", checks["nats"])
    assert checks["start"] == "it is starting"
    problem = told["/api/v1/words"].json()
    assert (problem["code"], problem["detail"]) == ("disconnected", checks["nats"])
    assert told["/api/v1/words"].headers["retry-after"] == "1"
    assert words.json() == ["one"]


async def _answer(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """As soon as the door is open."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await client.get(path)
            except httpx.ConnectError:
                await asyncio.sleep(0)


async def test_while_it_starts_a_service_is_not_ready(mesh: Running) -> None:
    port, entered, go_on = free_port(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        entered.set()
        await go_on.wait()
        yield

    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        tasks.create_task(mesh.run({"one": service(port=port, lifespan=slow)}))
        await entered.wait()
        readiness, other = await client.get("/readyz"), await client.get("/api/v1/words")
        go_on.set()
        await mesh.ready.wait()
        mesh.stop.set()
    assert (readiness.status_code, readiness.json()["checks"]) == (503, {"nats": "ok", "start": "it is starting"})
    assert (other.status_code, other.json()["code"]) == (503, "unavailable")


def test_an_unknown_service_is_told_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of({"node_registry": service(), "work_marshaling": service()}, ["work_marshalling"]) == 2
    told = capsys.readouterr().err
    assert told == "There is no service 'work_marshalling'; there are node_registry, work_marshaling.\n"


def test_a_wrong_setting_ends_the_start_with_code_2_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUTDOWN_SECONDS", "soon")
    assert main_of({"node_registry": service()}, []) == 2
    told = capsys.readouterr().err
    assert told == "SHUTDOWN_SECONDS is 'soon'; it must be a number from 0 to 600.\n"


async def test_work_beside_the_services_is_told_where_nats_is_and_ends_before_them(mesh: Running) -> None:
    told: list[str] = []

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append("loop ended")

    async def beside(address: str) -> None:
        told.append(address)
        mesh.stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append("work beside ended")

    await run(
        {"one": service(loops=[loop])},
        mesh.settings(NATS_URL="nats://somewhere:4222"),
        stop=mesh.stop,
        alongside=beside,
        connect=mesh.server.connect,
    )
    assert told[:2] == ["nats://somewhere:4222", "work beside ended"]


async def test_work_beside_the_services_that_fails_ends_the_process(mesh: Running) -> None:
    async def beside(_: str) -> None:
        raise ZeroDivisionError("beside")

    with pytest.raises(ServiceFailed, match="ZeroDivisionError: beside"):
        await run({"one": service()}, mesh.settings(), stop=mesh.stop, alongside=beside, connect=mesh.server.connect)
    assert mesh.stop.is_set()


async def test_the_services_of_a_process_share_one_archive_that_outlives_them(mesh: Running, tmp_path: Path) -> None:
    platforms: list[Platform] = []
    builds = {f"service_{n}": service(platforms=platforms) for n in range(2)}
    async with mesh.up(builds):
        first, second = (platform.archive() for platform in platforms)
        await first.ping()
        assert first is second
        assert (tmp_path / "data" / "archive.db").exists()


async def test_no_archive_is_opened_where_no_service_asks(mesh: Running, tmp_path: Path) -> None:
    async with mesh.up({"service": service()}, ARCHIVE_URL="postgresql://127.0.0.1:1/nowhere"):
        pass
    assert mesh.failure is None
    assert not (tmp_path / "data" / "archive.db").exists()


async def test_supabase_without_its_key_ends_the_start_in_a_sentence(mesh: Running) -> None:
    def build(platform: Platform) -> Service:
        platform.archive()
        raise AssertionError("unreachable")

    await mesh.run({"service": build}, SUPABASE_URL="https://project.example")
    assert isinstance(mesh.failure, WrongSetting)
    assert "SUPABASE_SERVICE_KEY is not set" in mesh.failure.message
