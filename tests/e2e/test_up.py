"""What `make up`, `make demo` and `make down` do, as a user sees it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.deploying import Deploying, runs
from tests.e2e.test_deployments import TINY
from tests.fake_engine import begun, fake_vllm
from tests.mesh_process import MeshProcess, mesh_process
from tools.free_ports import free_port

UP = ("-m", "services.up")
NODE_SIDE = ("resource_detector", "gpu_orchestrator", "node_agent")


def wait_for(mesh: MeshProcess, words: str, *, timeout: float = 90) -> None:
    until = time.monotonic() + timeout
    while words not in mesh.output:
        assert time.monotonic() < until, f"never said {words!r}; it said:\n{mesh.output}"
        assert mesh.process is not None
        assert mesh.process.poll() is None, f"ended before it said {words!r}; it said:\n{mesh.output}"
        time.sleep(0.05)


def test_the_demo_completes_forty_items_and_leaves_no_process_behind(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        code = mesh.run((*UP, "--demo"), timeout=120)

        assert code == 0, mesh.output
        assert "40 of 40 items completed" in mesh.output
        counted = re.search(r"(\d+) tokens, as the engine counted (\d+)", mesh.output)
        assert counted is not None
        assert counted[1] == counted[2] != "0"
        assert "test model" in mesh.output
        assert "device: cpu" in mesh.output
        assert mesh.left_behind() == []


def test_up_stays_until_ctrl_c_and_then_leaves_no_process_behind(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start(UP)
        wait_for(mesh, "The mesh is up.")
        assert httpx.get(f"{mesh.url('node_registry')}/readyz").status_code == httpx.codes.OK

        assert mesh.stop() == 0, mesh.output
        assert mesh.left_behind() == []


def test_a_mesh_in_the_background_is_ended_by_down(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        assert mesh.run((*UP, "--background"), timeout=120) == 0, mesh.output
        pid = int((mesh.directory / "up.lock").read_text())
        os.kill(pid, 0)
        assert f"process {pid}" in mesh.output

        assert mesh.run((*UP, "--down"), timeout=60) == 0, mesh.output
        assert mesh.left_behind() == []


def test_down_ends_what_a_killed_mesh_left_behind(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start(UP)
        wait_for(mesh, "The mesh is up.")
        mesh.kill()
        assert mesh.left_behind() != []

        assert mesh.run((*UP, "--down"), timeout=60) == 0, mesh.output
        assert "left behind: nats-server" in mesh.output
        assert mesh.left_behind() == []


def test_down_ends_the_deployed_engines_of_a_killed_mesh_and_no_others(tmp_path):
    vllm = fake_vllm(tmp_path / "vllm")
    with mesh_process(tmp_path / "data", ENGINE_PROGRAMS=f"vllm={vllm}") as mesh:
        mesh.start(UP)
        wait_for(mesh, "The mesh is up.")
        mesh.wait_until_listed()
        deploying = Deploying(mesh, tmp_path / "vllm")
        with deploying.client:
            deploying.deploy(model_config=TINY)
            deploying.until_ready()
        (start,) = begun(tmp_path / "vllm")
        mesh.kill()
        other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
        try:
            os.kill(start["pid"], signal.SIGKILL)  # what nobody answers for any more is found all the same
            assert runs(start["core"])
            assert mesh.run((*UP, "--down"), timeout=90) == 0, mesh.output
            assert f"vllm of one ({start['pid']})" in mesh.output
            assert not runs(start["core"])
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()
        assert mesh.left_behind() == []


def test_another_machine_joins_with_the_token(tmp_path):
    with mesh_process(tmp_path / "first", ENGINE="none", NATS_TOKEN="let-me-in") as first:
        first.start().wait_ready().wait_until_listed()
        address = first.nats_url.replace("nats://", "nats://let-me-in@")
        with mesh_process(tmp_path / "second", NODE_ID="second", NATS_URL=address) as second:
            second.start(("-m", "services", *NODE_SIDE)).wait_ready(NODE_SIDE)
            work = {"work_type": "inference", "payload": {"prompt": "Hello", "max_tokens": 2}}
            url = f"{first.url('work_marshaling')}/api/v1/work"
            work_id = httpx.post(f"{url}/submit", json=work).json()["work_id"]
            result = httpx.get(f"{url}/{work_id}/result", params={"wait_seconds": 30}, timeout=40).json()

    assert (result["status"], result["node_id"]) == ("completed", "second")
    assert "let-me-in" not in first.output + second.output


def test_a_second_mesh_in_the_same_place_is_refused_with_what_to_do(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        assert mesh.run((*UP, "--background"), timeout=120) == 0, mesh.output
        assert mesh.run(UP, timeout=30) == 2
        assert "already runs here" in mesh.output
        assert mesh.run((*UP, "--down"), timeout=60) == 0, mesh.output


def test_down_without_a_mesh_says_so(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        assert mesh.run((*UP, "--down"), timeout=30) == 0
        assert "No mesh is running here." in mesh.output


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("WORK_RETRY_MAX", "many", r"WORK_RETRY_MAX is 'many'; it must be"),
        ("HTTP_HOST", "0.0.0.0", r"HTTP_HOST is '0\.0\.0\.0'.*set API_TOKEN"),
        ("MODEL", "/nowhere/model.gguf", r"MODEL is '/nowhere/model\.gguf'.*GGUF"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_sentence(tmp_path, variable, value, sentence):
    with mesh_process(tmp_path / "data", **{variable: value}) as mesh:
        assert mesh.run((*UP, "--demo"), timeout=60) == 2, mesh.output
        said = " ".join(mesh.output.split())
        assert re.search(sentence, said), said
        assert "Traceback" not in said
        assert mesh.left_behind() == []


def test_a_taken_port_is_named_with_what_to_do(tmp_path):
    with mesh_process(tmp_path / "data") as mesh, socket.socket() as other:
        other.bind(("127.0.0.1", mesh.ports["work_marshaling"]))
        other.listen()
        assert mesh.run((*UP, "--demo"), timeout=60) == 2, mesh.output
        said = " ".join(mesh.output.split())
        assert re.search(rf"Port {mesh.ports['work_marshaling']} .*WORK_MARSHALING_PORT", said), said
        assert mesh.left_behind() == []


def test_after_a_kill_the_next_start_finishes_what_was_open_and_then_its_own_job(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start(UP)
        wait_for(mesh, "Engine ")
        until_something_was_accepted(mesh)
        mesh.kill()

        assert mesh.run((*UP, "--demo"), timeout=180) == 0, mesh.output
        assert "40 of 40 items completed" in mesh.output
        assert mesh.left_behind() == []


def test_what_waits_for_something_that_is_not_there_keeps_no_mesh_from_starting(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start().wait_ready()
        work = {"work_type": "function", "payload": {"function": "nowhere"}}
        httpx.post(f"{mesh.url('work_marshaling')}/api/v1/work/submit", json=work).raise_for_status()
        mesh.stop()

        assert mesh.run((*UP, "--demo"), timeout=60) == 0, mesh.output
        assert "1 of them stay open" in mesh.output
        assert "40 of 40 items completed" in mesh.output


def test_a_machine_without_an_engine_comes_up(tmp_path):
    with mesh_process(tmp_path / "data", ENGINE="none") as mesh:
        assert mesh.run((*UP, "--demo"), timeout=60) == 0, mesh.output
        assert "This machine runs no engine" in mesh.output


def test_a_main_job_that_does_not_come_through_takes_nothing_down(tmp_path):
    with mesh_process(tmp_path / "data", ENGINE="openai", ENGINE_URL=f"http://127.0.0.1:{free_port()}") as mesh:
        mesh.start(UP)
        wait_for(mesh, "The mesh is up.")
        assert "node_agent is not ready: engine openai-1: FAILED" in mesh.output
        assert "The main job did not come through: openai-1: " in mesh.output
        assert httpx.get(f"{mesh.url('node_registry')}/healthz").is_success


def until_something_was_accepted(mesh: MeshProcess) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if httpx.get(f"{mesh.url('work_marshaling')}/api/v1/work", params={"limit": 1}).json()["items"]:
            return
    raise AssertionError(mesh.output)


def test_sigterm_ends_it_like_ctrl_c(tmp_path: Path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start(UP)
        wait_for(mesh, "The mesh is up.")
        mesh.signal(signal.SIGTERM)
        assert mesh.wait(30) == 0, mesh.output
        assert mesh.left_behind() == []
