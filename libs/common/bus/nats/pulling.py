"""Pull requests kept open on one consumer, for one connection: what ordered readers and durable consumers share."""

import asyncio
import json
from collections.abc import Callable
from typing import NamedTuple

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.inbox import NO_HEADERS, STATUS
from libs.common.bus.nats.jetstream import API, NANOSECONDS, at_nanoseconds
from libs.common.bus.transport import Stored
from libs.common.errors import Disconnected

EXPIRES_SECONDS = 30
HEARTBEAT_SECONDS = 5
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
_GONE = ("deleted", "shutdown", "leadership")


class Ticket(NamedTuple):
    """What the subject for acknowledging tells about a delivery."""

    stream: str
    delivered: int
    sequence: int
    consumer_sequence: int
    nanoseconds: int
    pending: int


def ticket(reply: str) -> Ticket:
    """Read both forms: `$JS.ACK.<stream>…` and, with domain and account hash before the stream, the newer one."""
    tokens = reply.split(".")
    first = 2 if len(tokens) == 9 else 4
    delivered, sequence, consumer_sequence, nanoseconds, pending = tokens[first + 2 : first + 7]
    return Ticket(tokens[first], int(delivered), int(sequence), int(consumer_sequence), int(nanoseconds), int(pending))


def stored(message: Msg, told: Ticket) -> Stored:
    return Stored(
        stream=told.stream,
        subject=message.subject,
        sequence=told.sequence,
        payload=message.data,
        headers=message.headers or NO_HEADERS,
        at=at_nanoseconds(told.nanoseconds),
    )


class Pulling:
    """Calls `take` with each message; up to `batch` are asked for or waiting to be fetched by the user.

    `waiting` says how many the user has not fetched yet. An `ahead` one asks for more before the user does. Once
    `broken` has a reason, nothing more comes.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        consumer: str,
        inbox: str,
        batch: int,
        max_bytes: int | None,
        ahead: bool,
        take: Callable[[Msg, Ticket], str | None],
        waiting: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._next = f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._batch = batch
        self._max_bytes = max_bytes
        self._ahead = ahead
        self._take = take
        self._waiting = waiting
        self._asked = 0
        self._heard = asyncio.get_running_loop().time()
        self._news = asyncio.Event()
        self._broken: str | None = None
        self._awaited = False
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Raises `Disconnected`."""
        self._connection.ended.add_done_callback(self._lost)
        self._subscription = await self._connection.subscribe(self._inbox, at_once=self._hear)
        if self._ahead:
            self.ask()

    async def stop(self) -> None:
        self._connection.ended.remove_done_callback(self._lost)
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    @property
    def broken(self) -> str | None:
        return self._broken or (None if self._connection.usable else "the connection was lost")

    async def news(self) -> None:
        """Wait until there is something to fetch, or it is broken."""
        self._news.clear()
        if self._waiting() or self.broken:
            return
        self._awaited = True
        try:
            self.ask()
            async with asyncio.timeout_at(self._heard + SILENCE_SECONDS):
                await self._news.wait()
        except TimeoutError:
            if asyncio.get_running_loop().time() - self._heard >= SILENCE_SECONDS:
                self._broken = "the consumer is silent"
        finally:
            self._awaited = False

    def ask(self) -> None:
        """Ask for more when half is used up."""
        missing = self._batch - self._asked - self._waiting()
        if missing * 2 < self._batch or self._broken:
            return
        request: dict[str, int] = {
            "batch": missing,
            "expires": EXPIRES_SECONDS * NANOSECONDS,
            "idle_heartbeat": HEARTBEAT_SECONDS * NANOSECONDS,
        }
        if self._max_bytes is not None:
            request["max_bytes"] = self._max_bytes
        if not self._asked:
            self._heard = asyncio.get_running_loop().time()
        self._asked += missing
        try:
            self._connection.tell(self._next, json.dumps(request).encode(), None, self._inbox)
        except Disconnected as error:
            self._broken = str(error)

    def _hear(self, message: Msg) -> bool:
        self._heard = asyncio.get_running_loop().time()
        if message.reply.startswith("$JS.ACK."):
            self._asked -= 1
            self._broken = self._broken or self._take(message, ticket(message.reply))
        else:
            self._hear_status(message)
        if self._waiting() or self._broken:
            self._news.set()
        if self._ahead or self._awaited:
            self.ask()
        return True

    def _hear_status(self, message: Msg) -> None:
        headers = message.headers or NO_HEADERS
        status, told = headers.get(STATUS, ""), headers.get("Description", "").lower()
        if status == "100":
            return
        if status == "503" or any(word in told for word in _GONE):
            self._broken = f"the consumer is gone: {status} {told}"
        self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", 0)))

    def _lost(self, _: object) -> None:
        self._news.set()
