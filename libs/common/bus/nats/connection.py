"""One nats-py client, used for one connection only.

Whatever nats-py does not survive ends it, and somebody else opens the next: there is one path for every failure. All
that we know of nats-py's inside is in this file; the reasons stand beside each use.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from libs.common.bus.nats.address import Address, sign_in
from libs.common.bus.nats.inlet import take_over
from libs.common.bus.transport import Headers
from libs.common.errors import Disconnected, Malformed, MeshError, TooLarge, Unauthorized, WrongSetting

OLDEST_SERVER = (2, 15)
WRITE_AHEAD_BYTES = 2 * 1024 * 1024
WRITE_AT_ONCE_BYTES = 64 * 1024
CONNECT_TIMEOUT_SECONDS = 2
PING_SECONDS = 10
PINGS_UNANSWERED = 2

Hear = Callable[[Msg], Awaitable[None]]
Take = Callable[[Msg], bool]
Denied = Callable[[str, str], None]
"""Called with `publish` or `subscription`, and the subject; that of a publish comes in lower case."""

_BLANK = re.compile(r"[ \t\r\n]")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ONE_LINE = str.maketrans("\r\n", "  ")
_DENIED = re.compile(r'permissions violation for (publish|subscription).*? (?:to|of) "([^"]+)"')
_log = structlog.get_logger()


class _Client(Client):
    """Shortcuts, which save each message a queue, turns of the event loop and a dozen calls on its way out and in.

    And an ear for the last words of a server that refuses us.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken_at_once: dict[int, Take] = {}
        self.on_dropped: Callable[[str], None] = lambda _subject: None
        self._writes_soon = False

    async def flush(self, timeout: int = 0) -> None:
        """Left to `Connection.flush`: nats-py's own, when late or cancelled, makes the reader stop at the PONG.

        `nats.micro` calls it while it starts.
        """

    async def _process_connect_init(self) -> None:
        """A server that takes no more says INFO, -ERR and hangs up at once; nats-py then fails at writing, and does not
        read on."""
        try:
            await super()._process_connect_init()
        except ConnectionError as error:
            heard = getattr(self._transport, "_io_reader", None)
            # Its `read` raises the same error, whatever came before.
            last_words = bytes(getattr(heard, "_buffer", b"")).decode(errors="replace").strip()
            raise errors.Error(last_words or str(error)) from error
        self._read_at_once()

    def _read_at_once(self) -> None:
        """nats-py's own reader goes on, and gets what is no message."""
        reader, writer = getattr(self._transport, "_io_reader", None), getattr(self._transport, "_io_writer", None)
        if reader is not None and writer is not None:
            take_over(reader, writer.transport, hear=self._hear, unreadable=lambda reason: _end(reader, reason))

    def send(self, subject: str, payload: bytes, reply: str, headers: Headers | None) -> None:
        """`publish`, and raises what that does."""
        if _BLANK.search(subject + reply) or not subject:
            raise errors.BadSubjectError
        if self._status != Client.CONNECTED:
            raise errors.ConnectionClosedError
        if len(payload) > self._max_payload:
            raise errors.MaxPayloadError
        command = _command(subject, payload, reply, headers)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._writes_soon and self._flush_queue is not None and self._flush_queue.empty():
            self._flush_soon(self._flush_queue)

    async def _flush_pending(self, force_flush: bool = False) -> None:
        if force_flush or self._flush_queue is None:
            await super()._flush_pending(force_flush)
        else:
            self._flush_soon(self._flush_queue)

    def _flush_soon(self, flusher: "asyncio.Queue[asyncio.Future[None]]") -> None:
        """All of one turn of the event loop is written together, without waking nats-py's flusher for it.

        That one is needed only where the transport has no room: it waits for some.
        """
        writer = getattr(self._transport, "_io_writer", None)
        loop = asyncio.get_running_loop()
        if writer is None or writer.transport.get_write_buffer_size() > WRITE_AT_ONCE_BYTES:
            flusher.put_nowait(loop.create_future())
        elif not self._writes_soon:
            self._writes_soon = True
            loop.call_soon(self._write, writer)

    def _write(self, writer: asyncio.StreamWriter) -> None:
        self._writes_soon = False
        if self._pending and self.is_connected and not writer.transport.is_closing():
            writer.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0

    def _hear(self, number: int, subject: str, reply: str, payload: bytes, headers: dict[str, str] | None) -> None:
        subscription = self._subs.get(number)
        if subscription is None:
            return
        message = Msg(self, subject, reply, payload, headers)
        take = self.taken_at_once.get(number)
        try:
            if take is not None and not subscription.pending_msgs and take(message):
                return
        except Exception as error:  # noqa: BLE001  # a bug of the receiver must not end the reading
            _log.error("nats_callback_failed", subject=subject, exc_info=error)
            return
        size = subscription._pending_size + len(payload)
        if size >= subscription._pending_bytes_limit or subscription._pending_queue.full():
            self.on_dropped(subject)
        else:
            subscription._pending_size = size
            subscription._pending_queue.put_nowait(message)


class Connection:
    """`ended` is resolved with the reason once it no longer works; `number` counts connections from 1."""

    def __init__(self, number: int, on_denied: Denied) -> None:
        self.number = number
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = _Client()
        self._client.on_dropped = self._note_dropped
        self._on_denied = on_denied
        self._last_error = ""
        self._dropped = 0

    @classmethod
    async def open(cls, address: Address, number: int, *, servers: list[str], on_denied: Denied) -> "Connection":
        """Raises `Unauthorized`, `WrongSetting` (the server cannot serve us), `Disconnected`."""
        connection = cls(number, on_denied)
        try:
            await connection._connect(address, servers)
        except BaseException:
            await connection.discard()
            raise
        return connection

    async def _connect(self, address: Address, servers: list[str]) -> None:
        proof = sign_in(address)
        try:
            await self._client.connect(
                servers=servers,
                name=address.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                dont_randomize=True,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=PINGS_UNANSWERED,
                # Without bound, because waiting for room here could not be interrupted; `publish` bounds it.
                flusher_queue_size=0,
                pending_size=0,
                inbox_prefix=address.inbox_prefix,
                error_cb=self._hear_error,
                closed_cb=self._hear_closed,
                **proof,
            )
        except (errors.Error, OSError, TimeoutError, ValueError) as error:
            raise self._refusal(address, error) from error
        # nats-py returns as if connected when the server hung up instead of answering.
        if not self._client.is_connected:
            raise self._refusal(address, errors.UnexpectedEOF())
        self._check_server(address)
        for task in (self._client._reading_task, self._client._flusher_task, self._client._ping_interval_task):
            # Each of them can die of an exception while `is_connected` stays true.
            if task is not None:
                task.add_done_callback(lambda _: self.end("nats-py stopped reading or writing"))

    def _refusal(self, address: Address, error: Exception) -> MeshError:
        told = f"{error} {self._last_error}".lower()
        if "authorization violation" in told or "authentication" in told:
            return Unauthorized(f"The nats-server at {address} refuses {address.who}: wrong or expired credentials")
        if "expecting info" in told or "maximum connections" in told:
            return Disconnected(f"The server at {address} takes no more connections, or is no nats-server")
        reason = self._last_error or str(error) or type(error).__name__
        return Disconnected(f"There is no connection to the nats-server at {address}: {reason}")

    def _check_server(self, address: Address) -> None:
        info = self._client._server_info
        version = str(info.get("version", "0"))
        if _numbers(version) < OLDEST_SERVER:
            wanted = ".".join(str(number) for number in OLDEST_SERVER)
            raise WrongSetting(f"The nats-server at {address} is {version}; {wanted} or newer is needed")
        if not info.get("jetstream"):
            raise WrongSetting(f"The nats-server at {address} runs without JetStream; start it with -js")

    @property
    def client(self) -> Client:
        """For `nats.micro`, which wants one."""
        return self._client

    @property
    def max_payload(self) -> int:
        return int(self._client.max_payload)

    @property
    def usable(self) -> bool:
        return self._client._status == Client.CONNECTED and not self.ended.done()

    @property
    def servers(self) -> list[str]:
        """The servers of the cluster, as this one knows them."""
        return [server.uri.geturl() for server in self._client._server_pool]

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(self._last_error or reason)

    async def publish(self, subject: str, payload: bytes, headers: Headers | None, reply: str = "") -> None:
        """Raises `Disconnected` when it was not sent, `Malformed`."""
        self.tell(subject, payload, headers, reply)
        if self._client._pending_data_size > WRITE_AHEAD_BYTES:
            await self._written(None)

    def tell(self, subject: str, payload: bytes, headers: Headers | None, reply: str = "") -> None:
        """`publish` for the little that may be said without waiting for room."""
        try:
            self._client.send(subject, payload, reply, headers)
        except errors.ConnectionClosedError as error:
            self.end("closed")
            raise Disconnected("The connection to NATS was lost") from error
        except errors.MaxPayloadError as error:
            raise TooLarge(f"{len(payload)} bytes are more than the nats-server takes", subject=subject) from error
        except (errors.BadSubjectError, errors.BadHeaderError) as error:
            raise Malformed(f"Cannot be published on {subject!r}: {error}", subject=subject) from error

    async def subscribe(
        self, subject: str, hear: Hear | None = None, *, group: str | None = None, at_once: Take | None = None
    ) -> Subscription:
        """The server knows of it after the next `flush`. What arrives waits for `hear`."""
        try:
            subscription = await self._client.subscribe(subject, queue=group or "", cb=hear)
        except errors.ConnectionClosedError as error:
            raise Disconnected("The connection to NATS was lost") from error
        except errors.BadSubjectError as error:
            raise Malformed(f"{subject!r} is no subject", subject=subject) from error
        if at_once is not None:
            self.take_at_once(subscription, at_once)
        return subscription

    def take_at_once(self, subscription: Subscription, take: Take) -> None:
        """Call `take` with what arrives while nothing waits: false sends the message after all to where it would wait.

        It is called by whoever reads the socket, before that reads on: for what takes microseconds, and needs no task.
        """
        self._client.taken_at_once[subscription._id] = take

    async def unsubscribe(self, subscription: Subscription, *, handle_pending_within: float = 0) -> None:
        """End it. With `handle_pending_within`, what has arrived is still handled."""
        if not self.usable:
            return
        await self._client._send_unsubscribe(subscription._id)
        if handle_pending_within and subscription._id in self._client._subs:
            await self.flush(handle_pending_within)
            await self.handled([subscription], handle_pending_within)
        subscription._stop_processing()
        self._client._remove_sub(subscription._id)
        self._client.taken_at_once.pop(subscription._id, None)

    async def handled(self, subscriptions: Sequence[Subscription], within: float) -> bool:
        """Whether all that has arrived for them was handled in time."""
        handled = asyncio.gather(*(subscription._pending_queue.join() for subscription in subscriptions))
        either: set[asyncio.Future[Any]] = {handled, self.ended}
        try:
            await asyncio.wait(either, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            return handled.done()
        finally:
            handled.cancel()

    async def flush(self, timeout: float) -> None:
        """Return when the server has had everything sent before. Raises `Disconnected`.

        nats-py's `flush` is no barrier: its PING overtakes what is not written yet. So the writing is waited for
        first. And the PONG's future is never cancelled, because the reader would stop at it.
        """
        await self._written(timeout)
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._client._send_ping(pong)
        await self._wait(pong, timeout)

    async def _written(self, timeout: float | None) -> None:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._client._flush_queue is not None:
            self._client._flush_queue.put_nowait(written)
            await self._wait(written, timeout)

    async def _wait(self, done: "asyncio.Future[Any]", timeout: float | None) -> None:
        await asyncio.wait({done, self.ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Disconnected("The connection to NATS was lost" if self.ended.done() else "The nats-server is silent")

    async def discard(self) -> None:
        """Leave nothing behind: no task, no socket. nats-py's `close` waits for peers that do not read."""
        self.end("closed by us")
        client = self._client
        client._status = Client.CLOSED
        tasks = [client._reading_task, client._flusher_task, client._ping_interval_task]
        tasks += [subscription._wait_for_msgs_task for subscription in client._subs.values()]
        writer = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        running = [task for task in tasks if task is not None and not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _hear_error(self, error: Exception) -> None:
        told = str(error)
        if (found := _DENIED.search(told)) is not None:
            self._on_denied(found[1], self._as_written(found[2]))
        elif isinstance(error, errors.Error | OSError | TimeoutError):
            self._last_error = told or type(error).__name__
        else:
            _log.error("nats_callback_failed", exc_info=error)

    def _note_dropped(self, subject: str) -> None:
        self._dropped += 1
        if self._dropped.bit_count() == 1:  # the 1st, 2nd, 4th …: a flood must not become a flood of lines
            _log.warning("nats_messages_dropped", subject=subject, dropped=self._dropped)

    def _as_written(self, lowered: str) -> str:
        """nats-py lowers the server's refusals; this finds how a subscription wrote its subject."""
        subjects = (subscription.subject for subscription in self._client._subs.values())
        return next((subject for subject in subjects if subject.lower() == lowered), lowered)

    async def _hear_closed(self) -> None:
        self.end(str(self._client.last_error or "") or "the server closed it")


def _end(reader: asyncio.StreamReader, reason: str) -> None:
    """As when nats-py itself cannot read on."""
    reader.set_exception(errors.ProtocolError(f"nats: {reason}"))


def _command(subject: str, payload: bytes, reply: str, headers: Headers | None) -> bytes:
    """As the server reads it. Raises `BadHeaderError`."""
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (f"{subject} {reply}".encode(), len(payload), payload)
    lines = "".join([f"{_name(name)}: {value.strip().translate(_ONE_LINE)}\r\n" for name, value in headers.items()])
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    size = len(block)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (f"{subject} {reply}".encode(), size, size + len(payload), block, payload)


@lru_cache
def _name(header: str) -> str:
    if not _HEADER.fullmatch(header):
        raise errors.BadHeaderError(header)
    return header


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("-")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)
