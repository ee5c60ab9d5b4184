"""Who may not, or may no longer, or may again: said in one sentence, never in silence."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from libs.common.bus.nats.transport import NatsTransport, connect
from libs.common.bus.transport import Endpoint, Incoming
from libs.common.contracts.streams import MIB, Stream
from libs.common.errors import Forbidden, Unauthorized, WrongSetting
from tests.integration.bus.operator import Operator
from tests.integration.bus.parts import HASTY, NUMBERS, append, ask, echo_through, until
from tests.integration.bus.wire import wire_to
from tests.nats_process import NatsProcess, nats_process

ECHO = "test.echo.v1"
PRIVATE = "test.Private.v1"
KEPT = Stream(name="SECRETS", subjects=("test.Secret.v1",), max_bytes=MIB, summary="Secrets.")
USERS = """
authorization {
  users: [
    { user: admin, password: all }
    { user: "limited", password: some, permissions: {
        publish: { deny: ["test.Secret.v1", "test.Denied.>", "$JS.API.STREAM.CREATE.FORBIDDEN"] }
        subscribe: { deny: ["test.Private.>"] } } }
  ]
}
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsProcess]:
    with nats_process(extra=USERS) as process:
        yield process


def _url(server: NatsProcess, who: str) -> str:
    return server.url.replace("://", f"://{who}@")


@pytest.fixture
async def admin(guarded: NatsProcess) -> AsyncIterator[NatsTransport]:
    async with connect(_url(guarded, "admin:all"), name="admin") as transport:
        await transport.ensure_stream(NUMBERS)
        await transport.ensure_stream(KEPT)
        yield transport


@pytest.fixture
async def limited(guarded: NatsProcess, admin: NatsTransport) -> AsyncIterator[NatsTransport]:
    async with connect(_url(guarded, "limited:some"), name="limited") as transport:
        yield transport


async def test_a_request_that_is_not_permitted_fails_at_once_and_says_what_to_grant(limited: NatsTransport) -> None:
    with pytest.raises(Forbidden) as refused:
        await asyncio.wait_for(ask(limited, "test.Denied.ask.v1", timeout=60), 1)
    for word in ("limited", "test.denied.ask.v1", "publish", "allow"):
        assert word in refused.value.message


async def test_an_append_that_is_not_permitted_fails_at_once(limited: NatsTransport) -> None:
    with pytest.raises(Forbidden):
        await asyncio.wait_for(limited.append(KEPT.subjects[0], b"", {}, message_id=None, timeout=60), 1)


async def test_a_call_of_jetstream_that_is_not_permitted_fails_at_once(limited: NatsTransport) -> None:
    with pytest.raises(Forbidden, match=r"stream\.create\.forbidden"):
        await asyncio.wait_for(limited.ensure_stream(replace(KEPT, name="FORBIDDEN", subjects=("test.f.v1",))), 1)


async def test_a_refusal_harms_nobody_else(limited: NatsTransport, admin: NatsTransport) -> None:
    await echo_through(admin, ECHO)
    asking = asyncio.create_task(ask(limited, ECHO))
    await limited.publish("test.Denied.told.v1", b"", {})
    with pytest.raises(Forbidden):
        await ask(limited, "test.Denied.ask.v1")

    assert await asking == b"?"
    assert await append(limited, 1) > 0
    assert limited.connections == 1


async def _subscribe(transport: NatsTransport) -> None:
    await transport.subscribe(PRIVATE, _nothing_may_come)


async def _serve(transport: NatsTransport) -> None:
    await transport.serve(Endpoint(name="private", subject=PRIVATE, group="g"), _nothing_may_come)


async def _nothing_may_come(_: Incoming) -> None:
    raise AssertionError("nothing may come")


@pytest.mark.parametrize("listen", [_subscribe, _serve])
async def test_a_subscription_that_is_not_permitted_is_the_end(
    limited: NatsTransport, listen: Callable[[NatsTransport], Awaitable[None]]
) -> None:
    with pytest.raises(Forbidden):
        await listen(limited)

    with pytest.raises(Forbidden) as reason:
        await asyncio.wait_for(limited.failed(), 1)
    assert PRIVATE in reason.value.message
    assert "user 'limited'" in reason.value.message
    assert f'subscribe: {{ allow: ["{PRIVATE}"] }}' in reason.value.message


@pytest.mark.parametrize("who", ["limited:s3cret", "nobody:s3cret", "s3cret"])
async def test_wrong_credentials_are_refused_at_once(guarded: NatsProcess, who: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        async with asyncio.timeout(2), connect(_url(guarded, who), name="stranger"):
            raise AssertionError("it must not get in")
    assert who.rpartition(":")[2] not in refused.value.message


async def test_no_credentials_are_refused_at_once(guarded: NatsProcess) -> None:
    with pytest.raises(Unauthorized, match="without credentials"):
        async with asyncio.timeout(2), connect(guarded.url, name="stranger"):
            raise AssertionError("it must not get in")


async def test_credentials_refused_for_too_long_are_the_end(tmp_path: Path) -> None:
    users = 'authorization { users: [ { user: "u", password: "PASSWORD" } ] }'
    server = NatsProcess(tmp_path, extra=users.replace("PASSWORD", "before")).start()
    try:
        timing = replace(HASTY, auth_grace=0.5)
        async with connect(_url(server, "u:before"), name="ours", timing=timing) as ours:
            server.kill()
            changed = NatsProcess(tmp_path, extra=users.replace("PASSWORD", "after"))
            changed.port = server.port
            server = await asyncio.to_thread(changed.start)

            with pytest.raises(Unauthorized, match="user 'u'"):
                await asyncio.wait_for(ours.failed(), 5)
    finally:
        server.kill()


async def test_expired_credentials_are_replaced_while_running(tmp_path: Path) -> None:
    operator = Operator()
    file = tmp_path / "node.creds"
    with nats_process(extra=operator.configuration) as server:
        operator.write_credentials(file, valid_seconds=2)
        async with (
            connect(server.url, name="ours", credentials=file, timing=HASTY) as ours,
        ):
            await ours.ensure_stream(NUMBERS)
            await echo_through(ours, ECHO)
            await until(lambda: "credentials" in str(ours.problem()))

            operator.write_credentials(file, valid_seconds=None)
            await until(lambda: ours.connections == 2)

            assert await ask(ours, ECHO) == b"?"
            assert await append(ours, 1) == 1


async def test_a_user_is_named_as_its_jwt_does(tmp_path: Path) -> None:
    operator = Operator()
    file = tmp_path / "node.creds"
    operator.write_credentials(file, valid_seconds=None)
    with nats_process(extra=operator.configuration) as server:
        async with connect(server.url, name="ours", credentials=file) as ours:
            with pytest.raises(Forbidden, match="user 'node-1'"):
                await ask(ours, "test.Denied.ask.v1")


@pytest.mark.parametrize("content", [None, "", "-----BEGIN NATS USER JWT-----\n", "-----BEGIN USER NKEY SEED-----\n"])
async def test_an_unusable_credentials_file_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "node.creds"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WrongSetting, match=str(file)):
        async with asyncio.timeout(2), connect("nats://127.0.0.1:1", name="ours", credentials=file):
            raise AssertionError("it must not get in")


async def test_when_the_server_takes_no_more_connections_we_come_back_once_it_does() -> None:
    with nats_process(extra="max_connections: 2") as server:
        async with wire_to(server.port) as wire, connect(wire.url, name="ours", timing=HASTY) as ours:
            with ExitStack() as crowd:
                wire.refuses = True
                wire.cut()
                await until(ours.problem)
                for _ in range(2):  # one of them was ours: the server may need a moment to see that it is free
                    await asyncio.to_thread(_take_a_place, server, crowd)
                wire.refuses = False
                await until(lambda: "takes no more connections" in str(ours.problem()))

            await until(lambda: ours.problem() is None)
            assert ours.connections >= 2


def _take_a_place(server: NatsProcess, crowd: ExitStack) -> None:
    """The server says hello to everybody, and answers those who got in."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        place = socket.create_connection(("127.0.0.1", server.port), 5)
        with suppress(OSError):
            place.sendall(b"CONNECT {}\r\nPING\r\n")
            if any(b"PONG" in line for line in place.makefile("rb")):
                crowd.enter_context(place)
                return
        place.close()
    raise AssertionError("there was no place left")


async def test_a_server_without_jetstream_is_refused() -> None:
    with nats_process(jetstream=False) as server, pytest.raises(WrongSetting, match="without JetStream"):
        async with asyncio.timeout(2), connect(server.url, name="ours"):
            raise AssertionError("it must not get in")


async def test_an_old_server_is_refused() -> None:
    async def be_old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","headers":true,"max_payload":1048576}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    old = await asyncio.start_server(be_old, "127.0.0.1", 0)
    async with old:
        url = f"nats://127.0.0.1:{old.sockets[0].getsockname()[1]}"
        with pytest.raises(WrongSetting, match=r"is 2\.9\.10; 2\.15 or newer"):
            async with asyncio.timeout(2), connect(url, name="ours"):
                raise AssertionError("it must not get in")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:4222", "nats://", "nats://host:port", "nats://127.0.0.1:99999"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WrongSetting, match=r"nats://127\.0\.0\.1:4222"):
        async with connect(url, name="ours"):
            raise AssertionError("there is no such address")
