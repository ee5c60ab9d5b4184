"""What a server sends, in whatever pieces it arrives."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from libs.common.bus.nats.inlet import LONGEST_LINE_BYTES, Inlet, Unreadable, headers_of, take_over

Told = tuple[int, str, str, bytes, dict[str, str] | None]

END = "\r\n"
WORDS = st.text("abcXYZ.*>$_-019", min_size=1, max_size=12)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.strip)
MESSAGES = st.tuples(
    st.integers(1, 99999),
    WORDS,
    st.just("") | WORDS,
    st.binary(max_size=40),
    st.none() | st.dictionaries(st.text("abcN-", min_size=1, max_size=8), VALUES, min_size=1, max_size=3),
)
LINES = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"a": 1}\r\n', b"-ERR 'told'\r\n", b"nonsense\r\n"]
)


def _sent(told: Told | bytes) -> bytes:
    """As the server writes it."""
    if isinstance(told, bytes):
        return told
    number, subject, reply, payload, headers = told
    words = f"{subject} {number} {reply}".strip()
    if headers is None:
        return f"MSG {words} {len(payload)}\r\n".encode() + payload + b"\r\n"
    block = f"NATS/1.0\r\n{''.join(f'{name}: {value}{END}' for name, value in headers.items())}\r\n"
    head = block.encode()
    return f"HMSG {words} {len(head)} {len(head) + len(payload)}\r\n".encode() + head + payload + b"\r\n"


class Ear:
    """An inlet, and what came of what it was given."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.lines = bytearray()
        self.unreadable: list[str] = []
        self.inlet = Inlet(asyncio.Protocol(), self, hear=self._hear, unreadable=self.unreadable.append)  # type: ignore[arg-type]

    def feed_data(self, data: bytes) -> None:
        self.lines += data

    def _hear(self, *told: Any) -> None:
        self.told.append(told)


@given(st.lists(MESSAGES | LINES, max_size=8), st.lists(st.integers(1, 30), max_size=40))
def test_in_whatever_pieces_it_comes_all_is_heard_in_order(sent: list[Told | bytes], cuts: list[int]) -> None:
    ear, stream = Ear(), b"".join(map(_sent, sent))
    for size in cuts:
        ear.inlet.data_received(stream[:size])
        stream = stream[size:]
    if stream:
        ear.inlet.data_received(stream)

    assert ear.told == [told for told in sent if not isinstance(told, bytes)]
    assert bytes(ear.lines) == b"".join(told for told in sent if isinstance(told, bytes))
    assert ear.unreadable == []


@pytest.mark.parametrize(
    "malformed",
    [
        b"MSG a 1\r\n",
        b"MSG a one 1\r\nx\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 99999999999\r\n",
        b"HMSG a 1 1\r\n",
        b"HMSG a 1 5 4\r\nxxxx\r\n",
        b"HMSG a 1 10 10\r\nNATS/1.0\r\n\r\n",
        b"HMSG a 1 8 8\r\nNATS/2.0\r\n",
        b"x" * (LONGEST_LINE_BYTES + 1),
    ],
)
def test_after_what_is_malformed_nothing_is_heard(malformed: bytes) -> None:
    ear = Ear()
    ear.inlet.data_received(malformed)
    ear.inlet.data_received(b"MSG a 1 1\r\nx\r\n")

    assert (len(ear.unreadable), ear.told, bytes(ear.lines)) == (1, [], b"")


PAIRS = st.lists(st.tuples(st.text("aN-\u00e9 \t", max_size=6), st.text("a:\u20ac \t", max_size=8)), max_size=4)


@given(st.sampled_from(["", " 100 Idle Heartbeat", " 404 No Messages"]), PAIRS)
@example(" 503", [])
async def test_headers_are_read_as_another_client_reads_them(status: str, pairs: list[tuple[str, str]]) -> None:
    block = f"NATS/1.0{status}\r\n{''.join(f'{name}:{value}{END}' for name, value in pairs)}\r\n".encode()
    theirs = await Client()._process_headers(block)

    assert headers_of(block) == {str(getattr(name, "value", name)): value for name, value in (theirs or {}).items()}


def test_headers_in_bytes_that_are_no_text_are_read_as_far_as_they_are() -> None:
    assert headers_of(b"NATS/1.0\r\na: \xff\r\nb: c\r\n\r\n") == {"a": "\ufffd", "b": "c"}
    with pytest.raises(Unreadable):
        headers_of(b"NATS/1.0\r\na: b")


class Taken:
    """A connection that was taken over. `other` is the socket at its other end."""

    def __init__(self, other: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.other = other
        self.reader = reader
        self.writer = writer
        self.told: asyncio.Queue[Told] = asyncio.Queue()

    def take_over(self) -> None:
        take_over(self.reader, self.writer.transport, hear=self._hear, unreadable=lambda _: None)

    def _hear(self, *told: Any) -> None:
        self.told.put_nowait(told)


@asynccontextmanager
async def connected() -> AsyncIterator[Taken]:
    ours, other = socket.socketpair()
    other.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield Taken(other, reader, writer)
    finally:
        other.close()
        writer.transport.abort()


async def _sends(taken: Taken, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(taken.other, data)


async def test_what_arrived_before_it_was_taken_over_is_heard_first() -> None:
    async with connected() as taken, asyncio.timeout(5):
        await _sends(taken, b"PONG\r\nMSG a 1 1\r\nx\r\nMSG b 1 1\r")
        assert await taken.reader.readline() == b"PONG\r\n"
        taken.take_over()
        await _sends(taken, b"\ny\r\nPING\r\n")

        assert [(await taken.told.get())[3] for _ in range(2)] == [b"x", b"y"]
        assert await taken.reader.readline() == b"PING\r\n"


async def test_the_end_of_the_connection_reaches_the_reader() -> None:
    async with connected() as taken, asyncio.timeout(5):
        taken.take_over()
        taken.other.close()

        assert await taken.reader.read() == b""
        assert taken.reader.at_eof()


async def test_a_connection_at_its_end_is_left_to_its_reader() -> None:
    async with connected() as taken, asyncio.timeout(5):
        await _sends(taken, b"-ERR 'no'\r\n")
        taken.other.close()
        while not taken.reader._eof:  # type: ignore[attr-defined]  # `at_eof` is true only when all is read
            await asyncio.sleep(0)
        taken.take_over()

        assert await taken.reader.read() == b"-ERR 'no'\r\n"


async def test_who_writes_still_waits_for_room() -> None:
    async with connected() as taken, asyncio.timeout(5):
        taken.take_over()
        taken.writer.write(b"x" * 4_000_000)
        drained = asyncio.ensure_future(taken.writer.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        read = 0
        while read < 4_000_000:
            read += len(await asyncio.get_running_loop().sock_recv(taken.other, 1_000_000))

        await drained
