"""What arrives is read at once: over TLS, from servers that hang up at any byte, and more than is taken."""

import asyncio
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from libs.common.bus.nats.address import address
from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.transport import connect
from libs.common.errors import Disconnected
from tests.integration.bus.parts import HASTY, NUMBERS, append, ask, echo_through, everything_kept, until
from tests.nats_process import NatsProcess, nats_process

ECHO = "test.echo.v1"
MIB = 1024 * 1024
INFO = {"server_id": "test", "version": "2.15.0", "jetstream": True, "max_payload": MIB}
HELLO = f"INFO {json.dumps(INFO)}\r\n".encode()
TOLD = b"PONG\r\nMSG a 1 1\r\nx\r\nINFO {}\r\nHMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\nPING\r\n"

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """A whole life of an event loop."""

    def run(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scenario, 20))

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[NatsProcess]:
    with nats_process() as process:
        yield process


@pytest.fixture
def with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsProcess]:
    if shutil.which("openssl") is None:
        pytest.skip("no certificate can be made here: apt-get install openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    files = ["-keyout", str(key), "-out", str(certificate)]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    kind = ["-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(["openssl", "req", *kind, *files, *name], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with nats_process(extra=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}') as process:
        yield process


def test_messages_of_all_sizes_pass_over_tls_also_after_the_server_died(with_tls: NatsProcess, run: Run) -> None:
    async def scenario() -> None:
        url = f"tls://localhost:{with_tls.port}"
        async with connect(url, name="ours", timing=HASTY) as ours, connect(url, name="asker", timing=HASTY) as asker:
            await ours.ensure_stream(NUMBERS)
            await echo_through(ours, ECHO)
            for payload in (b"", b"\r\nMSG x 1 1\r\n", bytes(range(256)) * 3900):
                assert await ask(asker, ECHO, payload) == payload
            await asyncio.gather(*(append(ours, number) for number in range(300)))
            assert sorted(await everything_kept(asker)) == sorted(str(number).encode() for number in range(300))

            await with_tls.restart_after_kill()
            await until(lambda: ours.connections == 2 and asker.connections == 2)
            assert await ask(asker, ECHO) == b"?"

    run(scenario())


def test_a_server_that_hangs_up_after_any_byte_ends_the_connection(run: Run) -> None:
    async def scenario() -> None:
        for said in range(len(TOLD) + 1):
            for abort in (False, True):
                async with _server_that_says(TOLD[:said], abort=abort) as url:
                    await _ends(url)

    run(scenario())


@pytest.mark.parametrize("abort", [False, True])
def test_a_server_that_hangs_up_on_an_idle_connection_ends_it(abort: bool, run: Run) -> None:
    async def scenario() -> None:
        async with _server_that_says(b"PONG\r\nPING\r\n", abort=abort, after=b"PONG\r\n") as url:
            await _ends(url)

    run(scenario())


@pytest.mark.parametrize("unreadable", [b"MSG a one 1\r\n", b"HMSG a 1 8 8\r\nNATS/1.0\r\n", b"nonsense\r\n"])
def test_a_server_that_says_what_nobody_can_read_is_left_at_once(unreadable: bytes, run: Run) -> None:
    async def scenario() -> None:
        async with _server_that_says(b"PONG\r\nPING\r\n" + unreadable, after=b"nothing") as url:
            await _ends(url)

    run(scenario())


@asynccontextmanager
async def _server_that_says(told: bytes, *, abort: bool = False, after: bytes = b"") -> AsyncIterator[str]:
    """It says that to the first PING, and hangs up once it has heard what is given as `after`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readuntil(b"PING\r\n")
        writer.write(told)
        await writer.drain()
        if after:
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(after)
        if abort:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _ends(url: str) -> None:
    try:
        async with _connected(url) as connection:
            await asyncio.wait_for(asyncio.shield(connection.ended), 5)
    except Disconnected:
        return


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(address(url, name="ours"), 1, servers=[url], on_denied=lambda *_: None)
    try:
        yield connection
    finally:
        await connection.discard()


def test_more_than_is_taken_waits_up_to_a_bound_and_is_dropped_beyond_it(server: NatsProcess, run: Run) -> None:
    async def scenario() -> None:
        released, heard = asyncio.Event(), list[bytes]()

        async def hear(message: Msg) -> None:
            await released.wait()
            heard.append(message.data)

        async with _connected(server.url) as connection:
            subscription = await connection.subscribe("a", hear, at_once=lambda _: False)
            subscription._pending_bytes_limit = 10
            for number in range(10, 30):
                await connection.publish("a", b"%d" % number, None)
            with capture_logs() as lines:
                await connection.flush(5)
            released.set()
            assert await connection.handled([subscription], 5)
            assert heard == [b"%d" % number for number in range(10, 10 + len(heard))]
            assert 4 <= len(heard) <= 5
            assert lines[-1]["event"] == "nats_messages_dropped"

    run(scenario())


def test_what_cannot_be_taken_at_once_holds_back_what_comes_after_it(server: NatsProcess, run: Run) -> None:
    async def scenario() -> None:
        released, heard = asyncio.Event(), list[bytes]()

        async def hear(message: Msg) -> None:
            await released.wait()
            heard.append(message.data)

        def take(message: Msg) -> bool:
            if message.data == b"2":
                return False
            heard.append(message.data)
            return True

        async with _connected(server.url) as connection:
            subscription = await connection.subscribe("a", hear, at_once=take)
            for word in (b"1", b"2", b"2", b"3"):
                await connection.publish("a", word, None)
            await connection.flush(5)
            assert heard == [b"1"]
            released.set()
            assert await connection.handled([subscription], 5)
            await connection.publish("a", b"4", None)
            await connection.flush(5)
            assert heard == [b"1", b"2", b"2", b"3", b"4"]

    run(scenario())


def test_a_bug_of_a_receiver_is_told_and_the_next_message_is_heard(server: NatsProcess, run: Run) -> None:
    async def scenario() -> None:
        heard: list[bytes] = []

        def take(message: Msg) -> bool:
            heard.append(message.data)
            return 1 // (len(heard) - 1) > 0

        async with _connected(server.url) as connection:
            await connection.subscribe("a", at_once=take)
            with capture_logs() as lines:
                for word in (b"1", b"2"):
                    await connection.publish("a", word, None)
                await connection.flush(5)
            assert heard == [b"1", b"2"]
            assert [line["event"] for line in lines] == ["nats_callback_failed"]
            assert not connection.ended.done()

    run(scenario())
