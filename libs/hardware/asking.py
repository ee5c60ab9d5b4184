"""The other end of `answering`: questions to a child process, one JSON object per line, and its answers.

A question is written in the step that asks it, and who waits is told in the step that reads the answer: between the
two nothing waits for the event loop but the answer itself.
"""

import asyncio
import json
import socket
from typing import Any

LONGEST_LINE = 8 * 1024 * 1024
_PART_BYTES = 256 * 1024


class Questions:
    """Over one end of a pair of sockets; the child has the other for its input and output."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._heard = bytearray()
        self._loop.add_reader(end, self._hear)

    def ask(self, what: str) -> "asyncio.Future[dict[str, Any]]":
        """What is answered, or one of `OSError`, `ValueError`, `KeyError`, `TypeError` when no answer will be.

        Who is cancelled, or gives up, is not told; the answer may still come, before that of a later question.
        """
        self._asked += 1
        told: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        try:
            self._end.send(b'{"id": %d, "ask": "%b"}\n' % (self._asked, what.encode()))
        except OSError as error:
            told.set_exception(error)
            return told
        self._waiting[self._asked] = told
        return told

    def close(self) -> None:
        """Who waits is told so."""
        self._end_all(ConnectionAbortedError("it was ended"))

    def _hear(self) -> None:
        try:
            part = self._end.recv(_PART_BYTES)
            if not part:
                raise ConnectionResetError("its output ended")
            self._heard += part
            *lines, rest = self._heard.split(b"\n") if b"\n" in part else (self._heard,)
            self._heard = bytearray(rest)
            for line in lines:
                self._tell(json.loads(line))
            if len(self._heard) > LONGEST_LINE:
                raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._end_all(error)

    def _tell(self, answer: dict[str, Any]) -> None:
        told = self._waiting.pop(answer["id"], None)
        if told is not None and not told.done():
            told.set_result(answer)

    def _end_all(self, error: Exception) -> None:
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end)
            self._end.close()
        waiting, self._waiting = self._waiting, {}
        for told in waiting.values():
            if not told.done():
                told.set_exception(error)
