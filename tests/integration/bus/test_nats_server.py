"""The embedded nats-server: started, stopped, adopted, refused, kept alive."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from libs.common.bus.nats import server as module
from libs.common.bus.nats.server import ServerOptions, nats_server
from libs.common.bus.nats.transport import connect
from libs.common.errors import Unauthorized, WrongSetting
from tests.nats_process import nats_process

LEAVE_A_SERVER_BEHIND = """
import asyncio, os, signal, sys
from pathlib import Path
from libs.common.bus.nats.server import ServerOptions, nats_server

async def main():
    async with nats_server(ServerOptions(directory=Path(sys.argv[1]), port=0)) as server:
        print(server.url, server.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def options(directory: Path, port: int = 0) -> ServerOptions:
    return ServerOptions(directory=directory, port=port)


def left_behind(directory: Path) -> tuple[str, str]:
    """The address and the pid of a server whose starter was killed."""
    killed = subprocess.run(
        [sys.executable, "-c", LEAVE_A_SERVER_BEHIND, str(directory)], stdout=subprocess.PIPE, text=True, timeout=30
    )
    url, pid = killed.stdout.splitlines()[-1].split()
    return url, pid


async def accepts(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    except OSError:
        return False
    writer.close()
    return True


async def test_a_server_lives_as_long_as_its_context(tmp_path):
    async with nats_server(options(tmp_path)) as server:
        assert await accepts(server.url)
        assert (server.adopted, server.ours) == (False, True)
    assert not await accepts(server.url)
    assert not psutil.pid_exists(server.pid)


async def test_its_configuration_writes_every_message_to_disk(tmp_path):
    async with nats_server(options(tmp_path)):
        written = (tmp_path / "nats.conf").read_text()
    assert "sync_interval: always" in written
    assert "js_ack_fc_v2: false" in written


async def test_a_server_of_somebody_else_is_adopted_and_left_running(tmp_path):
    with nats_process() as theirs:
        async with nats_server(options(tmp_path, theirs.port)) as server:
            assert (server.adopted, server.ours) == (True, False)
        assert await accepts(server.url)


async def test_a_server_that_a_killed_process_of_ours_left_behind_is_ours_again(tmp_path):
    url, pid = left_behind(tmp_path)
    assert await accepts(url)
    async with nats_server(options(tmp_path, int(url.rsplit(":", 1)[1]))) as server:
        assert (server.adopted, server.ours, server.pid) == (True, True, int(pid))
    assert not await accepts(url)


async def test_with_a_token_nobody_is_let_in_who_does_not_know_it(tmp_path):
    async with nats_server(replace(options(tmp_path), token="let-me-in")) as server:
        assert server.url == f"nats://let-me-in@127.0.0.1:{server.port}"
        assert (tmp_path / "nats.conf").stat().st_mode & 0o077 == 0
        async with connect(server.url, name="ours") as transport:
            await transport.publish("x", b"", {})
        with pytest.raises(Unauthorized):
            async with connect(server.url.replace("let-me-in", "somebody"), name="a stranger"):
                pass


async def test_a_server_that_was_left_behind_with_other_settings_is_started_again(tmp_path):
    url, pid = left_behind(tmp_path)
    async with nats_server(replace(options(tmp_path, int(url.rsplit(":", 1)[1])), host="0.0.0.0")) as server:
        assert (server.adopted, server.url) == (False, url)
        assert 'listen: "0.0.0.0:' in (tmp_path / "nats.conf").read_text()
        assert server.pid != int(pid)


async def test_a_server_that_dies_is_started_again_on_the_same_port(tmp_path):
    async with nats_server(options(tmp_path)) as server:
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while json.loads((tmp_path / "server.json").read_text())["pid"] == server.pid:
                await asyncio.sleep(0.02)
        assert await accepts(server.url)
    assert not await accepts(server.url)


async def test_a_port_taken_by_something_else_is_refused_with_what_to_do(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(WrongSetting, match=f"Port {port} .* not a nats-server; stop it, or set NATS_PORT"):
            async with nats_server(options(tmp_path, port)):
                raise AssertionError("it must not start")


async def test_a_server_without_jetstream_is_refused(tmp_path):
    with (
        nats_process(jetstream=False) as theirs,
        pytest.raises(WrongSetting, match="without JetStream"),
    ):
        async with nats_server(options(tmp_path, theirs.port)):
            raise AssertionError("it must not start")


async def test_a_server_that_is_too_old_is_refused(tmp_path):
    async def old(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_name":"old","version":"2.9.10","jetstream":true}\r\n')
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(old, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        with pytest.raises(WrongSetting, match=r"is 2\.9\.10; 2\.15 or newer is needed"):
            async with nats_server(options(tmp_path, port)):
                raise AssertionError("it must not start")


async def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "jetstream").write_text("a file where a folder must be")
    with pytest.raises(module.Unavailable, match="nats-server ended at once"):
        async with nats_server(options(tmp_path)):
            raise AssertionError("it must not start")
