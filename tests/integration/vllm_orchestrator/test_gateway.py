"""A gateway's configuration on a real disk, checked by the real gateway, and real ways to have it read anew."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.inference.tensorzero import OURS, Served, files_of
from services.vllm_orchestrator.gateway_folder import FolderOfGateway
from services.vllm_orchestrator.gateway_reload import GatewayReload
from services.vllm_orchestrator.gateway_tensorzero import TensorZeroJudge
from tools.free_ports import free_ports

SERVED = [Served(model_name='odd "name"/x\x7f\\', provider=name, address="http://127.0.0.1:1") for name in ("a", "b")]
TREE = files_of(SERVED)
FUNCTION = b'[functions.f]\ntype = "chat"\n[functions.f.variants.v]\ntype = "chat_completion"\nmodel = "%s"\n'


async def test_the_gateway_takes_what_is_written():
    judge = TensorZeroJudge()
    assert await judge.judge(TREE) == []
    assert judge.by == "TensorZero's gateway"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[models.m]\nrouting = ['a']\nretries = 3\n[models.m.providers.a]\ntype = 'vllm'", "unknown field `retries`"),
        (FUNCTION % b"nobody::x", "nobody::x"),
        (b"[gateway]\nbind_address = 7", "bind_address"),
    ],
)
async def test_the_gateway_sees_what_our_checks_do_not(text: bytes, words: str):
    (found,) = await TensorZeroJudge().judge({**TREE, "own.toml": text})
    assert words in found.message


@pytest.mark.parametrize("text", [FUNCTION % b"openai::gpt-4o", b"[gateway]\nobservability.enabled = true\n"])
async def test_keys_and_databases_of_the_real_gateway_are_not_missed(text: bytes):
    assert await TensorZeroJudge().judge({**TREE, "own.toml": text}) == []


async def test_without_the_gateway_our_own_checks_decide():
    judge = TensorZeroJudge(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert await judge.judge(TREE) == []
    assert "not installed" in judge.by
    (found,) = await judge.judge({**TREE, "own.toml": b"x = ["})
    assert found.path == "own.toml"


async def test_what_is_put_is_live_as_a_whole_and_two_versions_are_kept(tmp_path: Path):
    folder = FolderOfGateway(tmp_path)
    assert await folder.live() == {}
    for count in range(1, 4):
        tree = files_of(SERVED[: count % 3]) | {"functions/f.txt": b"%d" % count}
        await folder.put(tree)
        assert await folder.live() == tree
    assert len(list(tmp_path.glob(".tree-*"))) == 2


async def test_a_version_that_was_half_written_is_written_anew(tmp_path: Path):
    folder = FolderOfGateway(tmp_path)
    await folder.put(TREE)
    name = (tmp_path / "live").readlink().name
    await folder.put({})
    (tmp_path / name / OURS / "metrics.toml").unlink()
    await folder.put(TREE)
    assert await folder.live() == TREE


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be written"):
        await FolderOfGateway(tmp_path / "file" / "inside").put(TREE)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as made:
        yield made


def reloading(client: httpx.AsyncClient, how: str, url: str | None = None, seconds: float = 20) -> GatewayReload:
    return GatewayReload(client, SystemClock(), how=how, url=url, seconds=seconds)


async def test_a_command_reloads_and_its_failure_is_told(client: httpx.AsyncClient, tmp_path: Path):
    await reloading(client, f"command:touch '{tmp_path}/a b'").reload()
    assert (tmp_path / "a b").exists()
    for how, words in (("command:false", "ended with 1"), ("command:/no/such", "cannot be run")):
        with pytest.raises(Unavailable, match=words):
            await reloading(client, how).reload()
    with pytest.raises(Unavailable, match=r"did not end within 0\.1 s"):
        await reloading(client, "command:sleep 60", seconds=0.1).reload()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "60"])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def test_a_process_gets_a_signal_by_its_file(
    client: httpx.AsyncClient, process: subprocess.Popen[bytes], tmp_path: Path
):
    (tmp_path / "gateway.pid").write_text(f"{process.pid}\n")
    await reloading(client, f"pidfile:{tmp_path}/gateway.pid").reload()
    assert process.wait(10) == -signal.SIGHUP
    with pytest.raises(Unavailable, match="cannot be told"):
        await reloading(client, f"pidfile:{tmp_path}/other.pid").reload()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Where a gateway tells which configuration it has, and the file that says which."""
    which = tmp_path / "which"
    which.write_text("one")

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "ok", "config_hash": which.read_text()}).encode()
            self.send_response(200 if self.path == "/status" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Status)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", which
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_gateway_is_waited_for_until_it_has_another_configuration(
    client: httpx.AsyncClient, told: tuple[str, Path]
):
    url, which = told
    later = f"command:sh -c '(sleep 0.3; printf two > {which}) >/dev/null 2>&1 &'"
    await reloading(client, later, url).reload()
    assert which.read_text() == "two"
    await reloading(client, "command:true", url, seconds=0.3).reload()


async def test_a_gateway_that_does_not_come_back_is_told(client: httpx.AsyncClient):
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match="did not come back"):
        await reloading(client, "command:true", f"http://127.0.0.1:{port}", seconds=0.3).reload()
