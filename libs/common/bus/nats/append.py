"""Durable publishing: a bounded window, deadlines, and the same bytes again until the server has them."""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog
from nats.aio.msg import Msg
from pydantic_core import from_json

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.inbox import NO_RESPONDERS, STATUS, Inbox, looked_at
from libs.common.bus.nats.jetstream import JetStream
from libs.common.bus.nats.link import Link
from libs.common.bus.nats.refusals import TRY_AGAIN, refusal
from libs.common.bus.transport import MESSAGE_ID_HEADER, Expect, Headers, Receipt
from libs.common.errors import Disconnected, MeshError, NobodyAnswers, TimedOut, WrongRevision

IN_FLIGHT = 1024
IN_FLIGHT_BYTES = 64 * 1024 * 1024
RESEND_SECONDS = 3.0
NOBODY_RESEND_SECONDS = 0.25
TICK_SECONDS = 0.05
# Shorter than the two minutes for which a server remembers message ids: later, the same bytes could count twice.
LAST_RESEND_SECONDS = 100.0
_log = structlog.get_logger()


class Appender:
    """A part of the link. `run` keeps the deadlines of everything in flight, with one timer for all.

    `on_nobody` is called while no stream keeps what is appended.
    """

    def __init__(self, link: Link, inbox: Inbox, jetstream: JetStream, unique: str) -> None:
        self._link = link
        self._inbox = inbox
        self._jetstream = jetstream
        self._unique = unique
        self._window = _Window()
        self._pending: dict[int, _Append] = {}
        self._wake = asyncio.Event()
        self.on_nobody: Callable[[], None] = lambda: None

    async def attach(self, connection: Connection) -> None:
        """The inbox is a part of its own."""

    def attached(self) -> None:
        self._wake.set()

    def detach(self) -> None:
        """What is in flight waits for the next connection."""

    async def append(
        self,
        subject: str,
        payload: bytes,
        headers: Headers,
        *,
        message_id: str | None,
        expect: Expect | None,
        timeout: float,
    ) -> Receipt:
        loop = asyncio.get_running_loop()
        append = _Append(subject, payload, loop.time() + timeout, loop)
        append.number = self._inbox.draw(append)
        append.reply = self._inbox.reply_subject(append.number)
        append.headers = _headers(headers, message_id or f"{self._unique}.{append.number}", expect)
        try:
            if not self._window.enter_at_once(len(payload)):
                await self._window.enter(len(payload), append.deadline)
            return await self._in_window(append)
        except WrongRevision as error:
            if expect is None or expect.subject not in (None, subject) or not (message_id or append.sent > 1):
                raise
            return await self._kept_before(append, expect.sequence, error)
        finally:
            self._inbox.forget(append.number)
            looked_at(append.receipt)

    async def _kept_before(self, append: "_Append", after: int, error: WrongRevision) -> Receipt:
        """The server looks at the expected sequence before the message id, so our own message may be in the way."""
        stream = append.stream
        sequence = await self._jetstream.kept_under(stream, append.subject, append.headers[MESSAGE_ID_HEADER], after)
        if sequence is None:
            raise error
        return Receipt(stream=stream, sequence=sequence, duplicate=True)

    async def _in_window(self, append: "_Append") -> Receipt:
        try:
            if not append.receipt.done():
                self._link.check_open()
            if not self._pending:
                self._wake.set()
            self._pending[append.number] = append
            connection = self._link.current
            if connection is not None:
                await self._send(append, connection)
            return await append.receipt
        finally:
            self._pending.pop(append.number, None)
            self._window.leave(len(append.payload))

    async def _send(self, append: "_Append", connection: Connection) -> None:
        now = append.loop.time()
        append.connection = connection.number
        append.resend_at = now + RESEND_SECONDS
        append.first_sent = append.first_sent or now
        append.sent += 1
        try:
            await connection.publish(append.subject, append.payload, append.headers, append.reply)
        except Disconnected:
            _log.debug("append_waits_for_connection", subject=append.subject)
        except MeshError as error:
            append.refused(error)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._sweep(asyncio.get_running_loop().time())
                await asyncio.sleep(TICK_SECONDS)

    async def _sweep(self, now: float) -> None:
        for append in list(self._pending.values()):
            if append.receipt.done():
                continue
            connection = self._link.current
            if now >= append.deadline or (append.first_sent and now - append.first_sent > LAST_RESEND_SECONDS):
                append.refused(append.overdue(self._link.problem()))
            elif connection is not None and (append.connection != connection.number or now >= append.resend_at):
                if append.nobody:
                    self.on_nobody()
                await self._send(append, connection)


class _Append:
    __slots__ = (
        "connection", "deadline", "first_sent", "headers", "loop", "nobody", "number", "payload", "receipt", "reply",
        "resend_at", "sent", "stream", "subject",
    )  # fmt: skip

    def __init__(self, subject: str, payload: bytes, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.subject = subject
        self.payload = payload
        self.deadline = deadline
        self.loop = loop
        self.receipt: asyncio.Future[Receipt] = loop.create_future()
        self.headers: dict[str, str] = {}
        self.number = self.connection = self.sent = 0
        self.reply = self.stream = ""
        self.resend_at = self.first_sent = 0.0
        self.nobody = False

    def answered(self, message: Msg) -> None:
        if self.receipt.done():
            return
        if message.headers is not None and message.headers.get(STATUS) == NO_RESPONDERS:
            self.nobody = True
            self._again()
            return
        answer = from_json(message.data)
        error = answer.get("error")
        if error is None:
            self.receipt.set_result(
                Receipt(stream=answer["stream"], sequence=answer["seq"], duplicate=answer.get("duplicate", False))
            )
        elif error.get("err_code") in TRY_AGAIN:
            self._again()
        else:
            self.stream = answer.get("stream", "")
            self.receipt.set_exception(refusal(error, self.subject))

    def _again(self) -> None:
        self.resend_at = self.loop.time() + NOBODY_RESEND_SECONDS

    def refused(self, error: MeshError) -> None:
        if not self.receipt.done():
            self.receipt.set_exception(error)

    def lost(self) -> None:
        """Nothing is lost: it is sent again on the next connection."""
        self.nobody = False

    def overdue(self, problem: str | None) -> MeshError:
        if not self.first_sent:
            return Disconnected(f"There was no connection to publish on {self.subject}: {problem}")
        if self.nobody:
            return NobodyAnswers(f"No stream keeps {self.subject}", subject=self.subject)
        return TimedOut(f"No receipt for {self.subject} in time; it may or may not be kept", subject=self.subject)


def _headers(given: Headers, message_id: str, expect: Expect | None) -> dict[str, str]:
    headers = {**given, MESSAGE_ID_HEADER: message_id}
    if expect is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(expect.sequence)
        if expect.subject is not None:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = expect.subject
    return headers


class _Window:
    """Bounds what is in flight, in messages and bytes; who waits is let in by turn."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def enter_at_once(self, size: int) -> bool:
        if self._queue or not self._has_room(size):
            return False
        self._take(size)
        return True

    async def enter(self, size: int, deadline: float) -> None:
        """Raises `TimedOut`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait({turn})
        except BaseException as error:
            if turn.done():
                self.leave(size)
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise TimedOut("Too much is on its way to the nats-server; this was not sent") from error
            raise

    def leave(self, size: int) -> None:
        self._messages -= 1
        self._bytes -= size
        while self._queue and (self._queue[0][1].done() or self._has_room(self._queue[0][0])):
            waiting, turn = self._queue.popleft()
            if not turn.done():
                self._take(waiting)
                turn.set_result(None)

    def _has_room(self, size: int) -> bool:
        return self._messages < IN_FLIGHT and (self._bytes + size <= IN_FLIGHT_BYTES or not self._bytes)

    def _take(self, size: int) -> None:
        self._messages += 1
        self._bytes += size
