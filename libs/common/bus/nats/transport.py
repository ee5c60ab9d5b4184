"""The real message system: NATS with JetStream. Port: `bus/transport.py`, twin: `memory/transport.py`.

There is one path for every failure. A client of nats-py lives for one connection (`connection.py`); when that
ends, for whatever reason, the link (`link.py`) opens the next and everything that lived on it is made anew.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import structlog

from libs.common.bus.nats.address import Address, address
from libs.common.bus.nats.append import Appender
from libs.common.bus.nats.consuming import DurableConsumer
from libs.common.bus.nats.inbox import Inbox, incoming
from libs.common.bus.nats.jetstream import CALL_SECONDS, JetStream
from libs.common.bus.nats.keys import Keys, Watch
from libs.common.bus.nats.limits import APPEND_RESERVE_BYTES, check_size
from libs.common.bus.nats.link import Link, Timing
from libs.common.bus.nats.listening import Listening, Micro
from libs.common.bus.nats.reading import OrderedReader
from libs.common.bus.nats.streams import Declarations
from libs.common.bus.transport import (
    Deliver,
    Delivery,
    Endpoint,
    Entry,
    Expect,
    Headers,
    Incoming,
    Receipt,
    Start,
    Stored,
    StreamState,
)
from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import Disconnected

GOODBYE_SECONDS = 0.3
CANCEL_AGAIN_SECONDS = 0.05
_default_timing = Timing()
_log = structlog.get_logger()


class NatsTransport:
    """See `Transport`. Made by `connect`."""

    def __init__(self, link: Link, *, service_version: str, replicas: int, max_bytes: Mapping[str, int]) -> None:
        plain_name = re.sub(r"[^A-Za-z0-9_-]", "_", link.address.name)[:40]
        self._unique = f"{plain_name}_{uuid4().hex[:12]}"
        self._numbers = count(1)
        self._link = link
        self._inbox = Inbox(link, self._unique)
        self._jetstream = JetStream(link, self._inbox)
        self._appender = Appender(link, self._inbox, self._jetstream, self._unique)
        self._declarations = Declarations(self._jetstream, replicas=replicas, max_bytes=max_bytes)
        self._keys = Keys(self._jetstream, self._appender)
        self._listening = Listening(link, Micro(plain_name, service_version, self._unique))
        link.on_publish_denied = self._inbox.denied
        self._appender.on_nobody = self._declarations.look
        link.carry((self._inbox, self._listening, self._appender, self._declarations))

    @property
    def max_payload(self) -> int:
        return self._link.max_payload

    @property
    def connections(self) -> int:
        return self._link.connections

    @property
    def made_again(self) -> int:
        return self._declarations.made_again

    def problem(self) -> str | None:
        return self._link.problem() or self._declarations.problem

    @property
    def away_seconds(self) -> float | None:
        return self._link.away_seconds

    async def connected(self) -> None:
        await self._link.first_connection()

    async def failed(self) -> None:
        await self._link.failed()

    async def publish(self, subject: str, payload: bytes, headers: Headers, *, reply: str | None = None) -> None:
        check_size(self.max_payload, subject, payload, headers)
        await self._link.send(subject, payload, headers, reply or "", within=self._link.timing.publish_patience)
        self._listening.unanswered.published(subject, headers)

    async def request(self, subject: str, payload: bytes, headers: Headers, *, timeout: float) -> Incoming:
        check_size(self.max_payload, subject, payload, headers)
        return incoming(await self._inbox.request(subject, payload, headers, timeout))

    async def subscribe(
        self, subject: str, deliver: Deliver, *, group: str | None = None, start: Start | None = None
    ) -> None:
        await self._listening.subscribe(subject, deliver, group, start)

    async def catch_up(self, subjects: Sequence[str], *, timeout: float) -> None:
        await self._listening.catch_up(subjects, timeout)

    async def serve(self, endpoint: Endpoint, deliver: Deliver, *, start: Start | None = None) -> None:
        await self._listening.serve(endpoint, deliver, start)

    async def stop_listening(self) -> None:
        await self._listening.stop()

    async def ensure_stream(self, stream: Stream, *, change: bool = True) -> None:
        await self._declarations.ensure_stream(stream, change=change)

    async def append(
        self,
        subject: str,
        payload: bytes,
        headers: Headers,
        *,
        message_id: str | None,
        expect: Expect | None = None,
        timeout: float,
    ) -> Receipt:
        check_size(self.max_payload, subject, payload, headers, APPEND_RESERVE_BYTES)
        return await self._appender.append(
            subject, payload, headers, message_id=message_id, expect=expect, timeout=timeout
        )

    async def read(self, stream: str, *, after: int, subjects: Sequence[str] = ()) -> AsyncIterator[Sequence[Stored]]:
        reader = OrderedReader(self._link, self._jetstream, self._next_name(), stream, after=after, subjects=subjects)
        try:
            while True:
                batch = await reader.batch()
                if batch.messages:
                    yield batch.messages
        finally:
            await reader.close()

    async def message(self, stream: str, sequence: int) -> Stored | None:
        return await self._jetstream.message(stream, sequence)

    async def last(self, stream: str, subject: str) -> Stored | None:
        return await self._jetstream.last(stream, subject)

    async def stream_state(self, stream: str) -> StreamState:
        return await self._jetstream.state(stream)

    async def subjects(self, stream: str, pattern: str) -> Sequence[str]:
        return await self._jetstream.subjects(stream, pattern)

    async def purge(self, stream: str, *, below: int, subject: str | None = None) -> None:
        await self._jetstream.purge(stream, below, subject)

    async def pull(
        self,
        stream: str,
        *,
        durable: str,
        subjects: Sequence[str] = (),
        ack_wait_seconds: float = 30.0,
        batch: int = 64,
    ) -> AsyncIterator[Delivery]:
        consumer = DurableConsumer(
            self._link,
            self._jetstream,
            self._next_name(),
            stream,
            durable=durable,
            subjects=subjects,
            ack_wait_seconds=ack_wait_seconds,
            batch=batch,
        )
        try:
            while True:
                yield await consumer.next()
        finally:
            await consumer.close()

    async def ensure_bucket(self, bucket: Bucket) -> None:
        await self._declarations.ensure_bucket(bucket)

    async def get(self, bucket: str, key: str) -> Entry | None:
        return await self._keys.get(bucket, key)

    async def put(
        self,
        bucket: str,
        key: str,
        payload: bytes,
        *,
        revision: int,
        ttl_seconds: int | None = None,
        timeout: float = 5,
    ) -> int:
        check_size(self.max_payload, key, payload, {}, APPEND_RESERVE_BYTES)
        return await self._keys.put(bucket, key, payload, revision=revision, ttl_seconds=ttl_seconds, timeout=timeout)

    async def delete(self, bucket: str, key: str, *, revision: int) -> None:
        await self._keys.delete(bucket, key, revision=revision, timeout=CALL_SECONDS)

    async def watch(self, bucket: str) -> AsyncIterator[Entry]:
        reader = OrderedReader(
            self._link,
            self._jetstream,
            self._next_name(),
            f"KV_{bucket}",
            subjects=(f"$KV.{bucket}.>",),
            newest_per_subject=True,
        )
        try:
            async for entry in Watch(bucket, reader).entries():
                yield entry
        finally:
            await reader.close()

    def _next_name(self) -> str:
        return f"{self._unique}_{next(self._numbers)}"

    def live(self) -> list["asyncio.Task[None]"]:
        """Start what goes on by itself; it ends only by being cancelled."""
        return [
            asyncio.create_task(self._link.run(), name="nats link"),
            asyncio.create_task(self._appender.run(), name="nats appends"),
            asyncio.create_task(self._declarations.run(), name="nats declarations"),
        ]

    async def close(self) -> None:
        """See to it that the server has what was published last; then whoever still waits is told."""
        connection = self._link.current
        try:
            if connection is not None:
                await connection.flush(GOODBYE_SECONDS)
        except Disconnected as error:
            _log.info("nats_closed_without_goodbye", reason=str(error))
        finally:
            self._link.close()
            self._inbox.close()


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str,
    credentials: Path | None = None,
    inbox_prefix: str = "_INBOX",
    service_version: str = "0.1.0",
    replicas: int = 1,
    max_bytes: Mapping[str, int] | None = None,
    timing: Timing = _default_timing,
    at_once: bool = False,
) -> AsyncIterator[NatsTransport]:
    """Connect as `name` and stay connected until left; entered once the first connection is there, however long that
    takes, or `at_once`.

    `url` may hold user and password, or a token, and several servers separated by commas. `max_bytes` overrides the
    size limits of streams by name. Raises `Unauthorized`, `WrongSetting` (no such URL, server too old, no JetStream).
    """
    where: Address = address(url, name=name, credentials=credentials, inbox_prefix=inbox_prefix)
    link = Link(where, timing)
    transport = NatsTransport(link, service_version=service_version, replicas=replicas, max_bytes=max_bytes or {})
    life = transport.live()
    for task in life:
        task.add_done_callback(lambda done: _tell(link, done))
    try:
        if not at_once:
            await transport.connected()
        yield transport
    finally:
        try:
            await transport.close()
        finally:
            await _end(life)


async def _end(life: list["asyncio.Task[None]"]) -> None:
    """Cancel until it helps: the `wait_for` of Python 3.11, which nats-py connects with, may swallow it."""
    running = set(life)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)


def _tell(link: Link, life: "asyncio.Task[None]") -> None:
    if not life.cancelled() and (error := life.exception()) is not None:
        link.fail(error)
