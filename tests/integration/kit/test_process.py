"""A real process with a real nats-server: signals, crashes, wrong settings, outages."""

import json
import signal
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nats as nats_py
import psutil
import pytest

from libs.common.contracts.streams import MIB
from tests.integration.kit.conftest import SmallMesh
from tests.nats_process import NatsProcess
from tools.free_ports import free_port


@pytest.fixture
def mesh(small_mesh: SmallMesh, shared_nats: NatsProcess) -> SmallMesh:
    small_mesh.environment["NATS_URL"] = shared_nats.url
    return small_mesh


def logged(mesh: SmallMesh) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mesh.output.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(mesh: SmallMesh, number: signal.Signals) -> None:
    mesh.start()
    mesh.wait_ready()
    mesh.signal(number)
    assert mesh.wait() == 0
    assert not [line for line in logged(mesh) if line["level"] in ("warning", "error")]


def test_requests_in_hand_on_both_doors_are_finished_after_sigterm(mesh: SmallMesh) -> None:
    mesh.environment["ECHO_SECONDS"] = "1"
    mesh.start()
    mesh.wait_ready()
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(httpx.get, mesh.url("asker", f"/ask/{n}"), timeout=10) for n in range(5)]
        while httpx.get(mesh.url("echo", "/owed")).json() < len(asked):
            assert not any(each.done() for each in asked)
        mesh.signal(signal.SIGTERM)
        answers = [each.result() for each in asked]
    assert [answer.json()["text"] for answer in answers] == [str(n) for n in range(5)]
    assert mesh.wait() == 0


def test_a_crashed_loop_ends_the_process_with_code_1_and_one_clear_line(mesh: SmallMesh) -> None:
    mesh.start()
    mesh.wait_ready()
    assert httpx.post(mesh.url("echo", "/crash")).status_code == 200
    assert mesh.wait() == 1
    errors = [line for line in logged(mesh) if line["level"] == "error"]
    assert len(errors) == 1
    assert errors[0]["event"] == "service_failed"
    assert errors[0]["service"] == "echo"
    assert "crash_when_asked" in errors[0]["part"]
    assert errors[0]["reason"] == "ZeroDivisionError: as asked"
    assert "Traceback" in errors[0]["exception"]


def test_a_taken_port_is_one_sentence_and_code_2(mesh: SmallMesh) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", mesh.ports["echo"]))
        other.listen()
        mesh.start()
        assert mesh.wait() == 2
    sentences = [line for line in mesh.output.splitlines() if not line.startswith("{")]
    port = mesh.ports["echo"]
    assert sentences == [f"Port {port} on 127.0.0.1 is taken by another program; stop it or set ECHO_PORT."]


def test_wrong_settings_of_several_services_are_all_told_without_a_traceback(mesh: SmallMesh) -> None:
    mesh.environment |= {"ECHO_SECONDS": "-1", "ASKER_PORT": "http"}
    mesh.start()
    assert mesh.wait() == 2
    sentences = sorted(line for line in mesh.output.splitlines() if not line.startswith("{"))
    assert sentences == [
        "ASKER_PORT is 'http'; it must be a whole number from 0 to 65535.",
        "ECHO_SECONDS is '-1'; it must be a number, at least 0.",
    ]


def test_one_service_can_run_alone(mesh: SmallMesh) -> None:
    mesh.arguments = ("echo",)
    mesh.start()
    mesh.wait_for_status("echo", 200)
    with pytest.raises(httpx.ConnectError):
        httpx.get(mesh.url("asker", "/healthz"))
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0


def test_readiness_names_nats_while_it_is_away_and_recovers(small_mesh: SmallMesh, nats: NatsProcess) -> None:
    small_mesh.environment["NATS_URL"] = nats.url
    small_mesh.start()
    small_mesh.wait_ready()
    nats.kill()
    away = small_mesh.wait_for_status("asker", 503)
    assert away.json()["checks"]["nats"] != "ok"
    assert httpx.get(small_mesh.url("asker", "/healthz")).status_code == 200
    answer = httpx.get(small_mesh.url("asker", "/ask/hello"), timeout=15)
    assert answer.status_code in (503, 504)
    assert answer.headers["content-type"] == "application/problem+json"
    nats.start()
    small_mesh.wait_ready()
    assert httpx.get(small_mesh.url("asker", "/ask/hello")).json() == {"text": "hello"}
    small_mesh.signal(signal.SIGTERM)
    assert small_mesh.wait() == 0
    told = [line["event"] for line in logged(small_mesh) if line.get("loop") == "look_after"]
    assert told == ["loop_waits", "loop_goes_on"]


def test_before_nats_was_reached_the_doors_are_open_and_say_where_it_should_be(
    small_mesh: SmallMesh, nats: NatsProcess
) -> None:
    nats.kill()
    small_mesh.environment["NATS_URL"] = nats.url
    small_mesh.start()
    away = small_mesh.wait_for_status("asker", 503)
    while "not connected yet" in away.text:
        away = small_mesh.wait_for_status("asker", 503)
    assert f"no connection to the nats-server at {nats.url}" in away.json()["checks"]["nats"]
    assert httpx.get(small_mesh.url("asker", "/healthz")).status_code == 200
    assert "mesh_nats_connected 0.0" in httpx.get(small_mesh.url("asker", "/metrics")).text
    declined = httpx.get(small_mesh.url("asker", "/ask/hello"))
    assert (declined.status_code, declined.json()["code"]) == (503, "disconnected")
    nats.start()
    small_mesh.wait_ready()
    assert httpx.get(small_mesh.url("asker", "/ask/hello")).json() == {"text": "hello"}


def test_the_process_ends_while_it_waits_for_nats(small_mesh: SmallMesh) -> None:
    small_mesh.environment["NATS_URL"] = f"nats://127.0.0.1:{free_port()}"
    small_mesh.start()
    while small_mesh.output.count("\n") == 0:
        assert small_mesh.process is not None
        assert small_mesh.process.poll() is None
    small_mesh.signal(signal.SIGTERM)
    assert small_mesh.wait(timeout=5) == 0


def test_without_a_url_a_server_is_started_and_stopped_with_us(small_mesh: SmallMesh) -> None:
    small_mesh.environment["NATS_PORT"] = str(free_port())
    small_mesh.start()
    small_mesh.wait_ready()
    assert small_mesh.process is not None
    children = psutil.Process(small_mesh.process.pid).children(recursive=True)
    assert [child.name() for child in children] == ["nats-server"]
    small_mesh.signal(signal.SIGINT)
    assert small_mesh.wait() == 0
    assert not [child for child in children if child.is_running()]


def test_a_correlation_id_joins_the_lines_of_a_request(mesh: SmallMesh) -> None:
    mesh.environment["LOG_LEVEL"] = "debug"
    mesh.start()
    mesh.wait_ready()
    httpx.get(mesh.url("asker", "/ask/hello"), headers={"correlation-id": "one-request"})
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    lines = [line for line in logged(mesh) if line.get("correlation_id") == "one-request"]
    assert [(line["service"], line["route"], line["status"]) for line in lines] == [("asker", "/ask/{text}", 200)]


def test_a_second_interrupt_ends_at_once(mesh: SmallMesh) -> None:
    mesh.environment |= {"ECHO_SECONDS": "60", "SHUTDOWN_SECONDS": "60"}
    mesh.start()
    mesh.wait_ready()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.get, mesh.url("asker", "/ask/hello"), timeout=30)
        while httpx.get(mesh.url("echo", "/owed")).json() < 1:
            assert not asked.done()
        mesh.signal(signal.SIGINT)
        while "stopping" not in mesh.output:
            assert mesh.process is not None
            assert mesh.process.poll() is None
        mesh.signal(signal.SIGINT)
        assert mesh.wait(timeout=5) == 128 + signal.SIGINT
    assert logged(mesh)[-1]["event"] == "stopped_at_once"


def test_credentials_that_nats_refuses_end_the_process_with_one_clear_line(small_mesh: SmallMesh) -> None:
    with tempfile.TemporaryDirectory() as directory:
        guarded = NatsProcess(Path(directory), extra='authorization { user: "mesh", password: "right" }')
        guarded.start()
        try:
            small_mesh.environment["NATS_URL"] = f"nats://mesh:wrong@127.0.0.1:{guarded.port}"
            small_mesh.start()
            assert small_mesh.wait() == 1
        finally:
            guarded.kill()
    errors = [line for line in logged(small_mesh) if line["level"] == "error"]
    assert [line["event"] for line in errors] == ["service_failed"]
    assert "credentials" in errors[0]["reason"]
    assert "wrong@" not in small_mesh.output


async def test_the_sizes_of_the_streams_are_settings(small_mesh: SmallMesh, nats: NatsProcess) -> None:
    small_mesh.environment |= {"NATS_URL": nats.url, "WORK_IN_MAX_MB": "3", "WORK_LOG_MAX_MB": "5"}
    small_mesh.start()
    small_mesh.wait_ready()
    client = await nats_py.connect(nats.url)
    sizes = {
        name: (await client.jetstream().stream_info(name)).config.max_bytes
        for name in ("WORK_IN", "WORK_OUT", "WORK_LOG")
    }
    await client.close()
    assert sizes == {"WORK_IN": 3 * MIB, "WORK_OUT": 1024 * MIB, "WORK_LOG": 5 * MIB}
