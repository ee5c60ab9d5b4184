"""A durable consumer: its messages are shared by all who pull it, and each must be settled."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog
from nats.aio.msg import Msg

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.jetstream import NANOSECONDS, PAUSE_SECONDS, JetStream
from libs.common.bus.nats.link import Link
from libs.common.bus.nats.pulling import Pulling, Ticket, stored
from libs.common.bus.transport import Stored
from libs.common.errors import Disconnected, Unavailable

# Cannot be changed later, so it is large: one pull request of every instance waits here.
MAX_WAITING = 2048
MAX_UNSETTLED = 20_000
STALE_SHARE = 0.8
_log = structlog.get_logger()


class NatsDelivery:
    def __init__(self, link: Link, message: Stored, delivered: int, settle_on: str) -> None:
        self.message = message
        self.delivered = delivered
        self._link = link
        self._settle_on = settle_on
        self._received = asyncio.get_running_loop().time()

    def is_stale(self, ack_wait_seconds: float) -> bool:
        """It has waited here for so long that the server gives it to somebody else now."""
        return asyncio.get_running_loop().time() - self._received > STALE_SHARE * ack_wait_seconds

    async def ack(self) -> None:
        await self._settle(b"+ACK")

    async def nak(self) -> None:
        await self._settle(b"-NAK")

    async def working(self) -> None:
        await self._settle(b"+WPI")

    async def term(self, reason: str) -> None:
        await self._settle(f"+TERM {reason}".encode())

    async def _settle(self, how: bytes) -> None:
        await self._link.send(self._settle_on, how, None, "", within=self._link.timing.publish_patience)


class DurableConsumer:
    def __init__(
        self,
        link: Link,
        jetstream: JetStream,
        unique: str,
        stream: str,
        *,
        durable: str,
        subjects: Sequence[str],
        ack_wait_seconds: float,
        batch: int,
    ) -> None:
        self._link = link
        self._jetstream = jetstream
        self._unique = unique
        self._stream = stream
        self._durable = durable
        self._subjects = subjects
        self._ack_wait_seconds = ack_wait_seconds
        self._batch = batch
        self._buffer: deque[NatsDelivery] = deque()
        self._pulling: Pulling | None = None
        self._restarts = 0

    async def next(self) -> NatsDelivery:
        """Waits as long as it takes. Raises `NotFound`, `Conflict` (the consumer exists otherwise), `Forbidden`."""
        while True:
            while self._buffer:
                delivery = self._buffer.popleft()
                if not delivery.is_stale(self._ack_wait_seconds):
                    return delivery
            if self._pulling is None or self._pulling.broken is not None:
                await self._restart()
            else:
                await self._pulling.news()

    async def close(self) -> None:
        """Hand back what nobody will handle, so that others need not wait for it."""
        await self._stop()
        try:
            while self._buffer and self._link.current is not None:
                await self._buffer.popleft().nak()
        except Disconnected as error:
            _log.debug("deliveries_left_to_the_server", stream=self._stream, reason=str(error))

    async def _stop(self) -> None:
        if self._pulling is not None:
            await self._pulling.stop()
            self._pulling = None

    async def _restart(self) -> None:
        await self._stop()
        connection = await self._link.connection(None)
        try:
            await self._start(connection)
        except Unavailable as error:
            _log.warning("consumer_waits", stream=self._stream, durable=self._durable, reason=str(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _start(self, connection: Connection) -> None:
        await self._jetstream.create_consumer(self._stream, self._config())
        self._restarts += 1
        self._pulling = Pulling(
            connection,
            stream=self._stream,
            consumer=self._durable,
            inbox=f"{self._link.address.inbox_prefix}.{self._unique}_{self._restarts}",
            batch=self._batch,
            max_bytes=None,
            # Others share this consumer: what nobody here waits for is theirs.
            ahead=False,
            take=self._take,
            waiting=lambda: len(self._buffer),
        )
        await self._pulling.start()

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": self._durable,
            "durable_name": self._durable,
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait_seconds * NANOSECONDS),
            "deliver_policy": "all",
            "max_deliver": -1,
            "max_waiting": MAX_WAITING,
            "max_ack_pending": MAX_UNSETTLED,
        }
        if len(self._subjects) == 1:
            config["filter_subject"] = self._subjects[0]
        elif self._subjects:
            config["filter_subjects"] = list(self._subjects)
        return config

    def _take(self, message: Msg, told: Ticket) -> str | None:
        self._buffer.append(NatsDelivery(self._link, stored(message, told), told.delivered, message.reply))
        return None
