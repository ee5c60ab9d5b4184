"""What a nats-server sends, read where it arrives: no stream, no task and no turn of the event loop in between.

Messages are read here. Every other line goes on to the stream reader that was there before, and from it to nats-py;
so do the end of the connection and its errors, and how full the way out is. A message that comes after such a line
may therefore be heard before the line is; one that came before it never is heard later, so a PONG stays a barrier.
"""

import asyncio
from collections.abc import Callable
from typing import cast

LONGEST_LINE_BYTES = 1024 * 1024
LARGEST_MESSAGE_BYTES = 128 * 1024 * 1024
Hear = Callable[[int, str, str, bytes, dict[str, str] | None], None]
"""Called with the number of a subscription, and a message: subject, reply, payload, headers. Raises nothing."""

_END = b"\r\n"
_VERSION = "NATS/1.0"
_BLANK = " \t\r\n\x0b\x0c"


class Unreadable(Exception):
    """The server said what is no message and no line."""


class Inlet(asyncio.Protocol):
    """Takes the place of `behind`, the protocol of `reader`. After `unreadable` was called nothing more is read."""

    def __init__(
        self,
        behind: asyncio.Protocol,
        reader: asyncio.StreamReader,
        *,
        hear: Hear,
        unreadable: Callable[[str], None],
    ) -> None:
        self._behind = behind
        self._reader = reader
        self._hear = hear
        self._unreadable = unreadable
        self._waiting: list[bytes] = []
        self._missing = 0
        self._closed = False

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self._waiting:
            self._waiting.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._waiting)
            self._waiting = []
        try:
            begin = self._read(data)
        except (Unreadable, ValueError) as error:
            self._closed = True
            self._unreadable(str(error))
            return
        if begin < len(data):
            self._waiting.append(data[begin:])

    def _read(self, data: bytes) -> int:
        """Returns where that begins which is not complete yet. Raises `Unreadable`, `ValueError`."""
        begin, size = 0, len(data)
        while begin < size:
            self._missing = 0
            end = data.find(_END, begin)
            if end < 0:
                if size - begin > LONGEST_LINE_BYTES:
                    raise Unreadable("a line without end")
                return begin
            if data.startswith(b"MSG", begin):
                words, head = data[begin + 3 : end].split(), 0
            elif data.startswith(b"HMSG", begin):
                words = data[begin + 4 : end].split()
                head = int(words.pop(-2)) if len(words) > 3 else -1
            else:
                self._reader.feed_data(data[begin : end + 2])
                begin = end + 2
                continue
            if not 3 <= len(words) <= 4 or not 0 <= head <= (length := int(words[-1])) <= LARGEST_MESSAGE_BYTES:
                raise Unreadable("a malformed message")
            number = int(words[1])
            begin, line = end + 2, begin
            after = begin + length
            if after + 2 > size:
                self._missing = after + 2 - size
                return line
            headers = headers_of(data[begin : begin + head]) if head else None
            reply = words[2].decode(errors="replace") if len(words) == 4 else ""
            subject = words[0].decode(errors="replace")
            self._hear(number, subject, reply, data[begin + head : after], headers)
            begin = after + 2
        return begin

    def eof_received(self) -> bool | None:
        self._closed = True
        return self._behind.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._behind.connection_lost(error)

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()


def take_over(
    reader: asyncio.StreamReader,
    transport: asyncio.Transport,
    *,
    hear: Hear,
    unreadable: Callable[[str], None],
) -> None:
    """From now on what arrives is read at once; also what has arrived and nobody has read yet.

    If the other side has hung up already, nothing is left to be changed.
    """
    if reader.exception() is not None or reader._eof or transport.is_closing():  # type: ignore[attr-defined]
        return
    inlet = Inlet(cast(asyncio.Protocol, transport.get_protocol()), reader, hear=hear, unreadable=unreadable)
    transport.set_protocol(inlet)
    arrived = reader._buffer  # type: ignore[attr-defined]
    unread = bytes(arrived)
    arrived.clear()
    if unread:
        inlet.data_received(unread)


def headers_of(block: bytes) -> dict[str, str]:
    """A status becomes the headers `Status` and `Description`. Raises `Unreadable`."""
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    if not first.startswith(_VERSION) or lines[-2:] != ["", ""]:
        raise Unreadable("malformed headers")
    headers = {}
    if told := first[len(_VERSION) :].strip(_BLANK):
        status, _, description = told.partition(" ")
        if status.isdecimal():
            headers["Status"] = status
        if description:
            headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.strip(_BLANK)
        if colon and name.isascii() and not any(map(str.isspace, name)):
            headers[name] = value.strip(_BLANK)
    return headers
