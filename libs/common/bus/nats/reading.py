"""A stream read in order, without gap or repetition, whatever happens to the server in between."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog
from nats.aio.msg import Msg

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.jetstream import NANOSECONDS, PAUSE_SECONDS, JetStream
from libs.common.bus.nats.link import Link
from libs.common.bus.nats.pulling import Pulling, Ticket, stored
from libs.common.bus.transport import Stored, StreamMadeAnew
from libs.common.errors import Unavailable

READ_BATCH = 512
READ_BYTES = 8 * 1024 * 1024
LET_GO_SECONDS = 60
_log = structlog.get_logger()


class Batch(NamedTuple):
    """`restarts` counts how often the consumer was made; `pending`: messages that are there and not in it yet; `made`:
    when the stream was."""

    messages: Sequence[Stored]
    restarts: int
    pending: int
    made: str | None


class OrderedReader:
    """Reads through a consumer of its own, which is made anew at each doubt: it is only a cursor of the server's.

    With `newest_per_subject`, each new consumer starts with the last message of every subject.
    """

    def __init__(
        self,
        link: Link,
        jetstream: JetStream,
        unique: str,
        stream: str,
        *,
        after: int = 0,
        subjects: Sequence[str] = (),
        newest_per_subject: bool = False,
    ) -> None:
        self._link = link
        self._jetstream = jetstream
        self._unique = unique
        self._stream = stream
        self._after = after
        self._subjects = subjects
        self._newest_per_subject = newest_per_subject
        self._pulling: Pulling | None = None
        self._consumer: str | None = None
        self._consumer_sequence = 0
        self._buffer: list[Stored] = []
        self._buffered_bytes = 0
        self._pending = 0
        self._restarts = 0
        self._made: str | None = None

    async def batch(self) -> Batch:
        """What has come, in order; empty only to tell that a new consumer has nothing pending.

        Waits as long as it takes. Raises `NotFound` when there is no such stream, `Forbidden`, and `StreamMadeAnew`
        unless it reads the newest of each subject.
        """
        while True:
            if self._buffer:
                return self._fetch()
            if self._pulling is None or self._pulling.broken is not None:
                if await self._restart() and not self._pending:
                    return Batch((), self._restarts, 0, self._made)
            else:
                await self._pulling.news()

    def _fetch(self) -> Batch:
        batch = Batch(self._buffer, self._restarts, self._pending, self._made)
        self._buffer = []
        self._buffered_bytes = 0
        if self._pulling is not None and self._pulling.broken is None:
            self._pulling.ask()
        return batch

    async def close(self) -> None:
        if self._pulling is not None:
            await self._pulling.stop()
            self._pulling = None
        if self._consumer is not None:
            await self._jetstream.forget_consumer(self._stream, self._consumer)
            self._consumer = None

    async def _restart(self) -> bool:
        if self._pulling is not None:
            _log.info("reader_restarts", stream=self._stream, after=self._after, reason=self._pulling.broken)
        await self.close()
        connection = await self._link.connection(None)
        try:
            await self._start(connection)
        except StreamMadeAnew:
            raise
        except Unavailable as error:
            _log.warning("reader_waits", stream=self._stream, reason=str(error))
            await asyncio.sleep(PAUSE_SECONDS)
            return False
        return True

    async def _start(self, connection: Connection) -> None:
        self._restarts += 1
        self._consumer_sequence = 0
        self._consumer = f"{self._unique}_{self._restarts}"
        made = await self._jetstream.create_consumer(self._stream, self._config(self._consumer))
        self._pending = int(made["num_pending"])
        await self._note_life()
        self._pulling = Pulling(
            connection,
            stream=self._stream,
            consumer=self._consumer,
            inbox=f"{self._link.address.inbox_prefix}.{self._consumer}",
            batch=READ_BATCH,
            max_bytes=max(READ_BYTES, 2 * self._link.max_payload),
            ahead=True,
            take=self._take,
            waiting=self._waiting,
        )
        await self._pulling.start()

    async def _note_life(self) -> None:
        """Asked once the consumer is there: a stream never becomes an earlier one again."""
        before, self._made = self._made, str((await self._jetstream.info(self._stream))["created"])
        if before not in (None, self._made) and not self._newest_per_subject:
            raise StreamMadeAnew(f"the stream {self._stream} was made anew", stream=self._stream)

    def _config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": LET_GO_SECONDS * NANOSECONDS,
            "max_deliver": 1,
        }
        if self._newest_per_subject:
            config["deliver_policy"] = "last_per_subject"
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._after + 1}
        if len(self._subjects) == 1:
            config["filter_subject"] = self._subjects[0]
        elif self._subjects:
            config["filter_subjects"] = list(self._subjects)
        return config

    def _take(self, message: Msg, told: Ticket) -> str | None:
        self._consumer_sequence += 1
        if told.consumer_sequence != self._consumer_sequence:
            return f"message {self._consumer_sequence} of the consumer is missing"
        if self._newest_per_subject or told.sequence > self._after:
            self._after = told.sequence
            self._pending = told.pending
            self._buffer.append(stored(message, told))
            self._buffered_bytes += len(message.data)
        return None

    def _waiting(self) -> int:
        """How many messages wait to be fetched; with many bytes in them they count as a full batch."""
        return READ_BATCH if self._buffered_bytes > READ_BYTES else len(self._buffer)
