"""The bus's transport in memory. Held to the same tests as the real one; stands in for it in unit tests.

Time is a `Clock`'s: deduplication, expiry, redelivery and timeouts happen when a test advances it.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.common.bus.memory.bucket import MemoryBucket
from libs.common.bus.memory.server import MIB, MemoryCore, Subscription, either
from libs.common.bus.memory.streams import Consumer
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
    StreamMadeAnew,
    StreamState,
)
from libs.common.clock import Clock
from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import NobodyAnswers, TimedOut

_BATCH = 256
_inboxes = itertools.count(1)


class MemoryServer:
    """What stands in for a nats-server: `async with server.connect("me") as transport`."""

    def __init__(self, *, clock: Clock, max_payload: int = MIB) -> None:
        self._core = MemoryCore(clock, max_payload)

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator["MemoryTransport"]:
        transport = MemoryTransport(self._core, name)
        try:
            yield transport
        finally:
            await transport.close()

    def stop(self) -> None:
        """Be away, as after a crash: what was kept stays."""
        self._core.running = False
        self._core.stopped_at = self._core.clock.monotonic()
        self._core.tell()

    def start(self, *, emptied: bool = False) -> None:
        """`emptied`: it lost its disk meanwhile."""
        if emptied:
            self._core.empty()
        self._core.running = True
        self._core.starts += 1
        self._core.tell()


@dataclass(eq=False, frozen=True, slots=True)
class MemoryDelivery:
    """A message of a durable consumer, out until `ack_wait_seconds` have passed."""

    message: Stored
    delivered: int
    core: MemoryCore
    consumer: Consumer
    ack_wait_seconds: float

    async def ack(self) -> None:
        await self.core.reach()
        self.consumer.settle(self.message.sequence)

    async def nak(self) -> None:
        await self.core.reach()
        self.consumer.give_back(self.message.sequence)
        self.core.tell()

    async def working(self) -> None:
        await self.core.reach()
        if self.message.sequence in self.consumer.out:
            self.consumer.out[self.message.sequence] = self.core.clock.monotonic() + self.ack_wait_seconds

    async def term(self, reason: str) -> None:
        await self.core.reach()
        self.consumer.settle(self.message.sequence)


class MemoryTransport:
    def __init__(self, core: MemoryCore, name: str) -> None:
        self._core = core
        self._name = name
        self._listening: dict[Subscription, asyncio.Task[None]] = {}

    @property
    def max_payload(self) -> int:
        return self._core.max_payload

    @property
    def connections(self) -> int:
        return self._core.starts

    @property
    def made_again(self) -> int:
        return self._core.made_again

    def problem(self) -> str | None:
        return None if self._core.running else "the in-memory server is stopped"

    @property
    def away_seconds(self) -> float | None:
        return None if self._core.running else self._core.clock.monotonic() - self._core.stopped_at

    async def connected(self) -> None:
        while not self._core.running:
            await self._core.changed.wait()

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def publish(self, subject: str, payload: bytes, headers: Headers, *, reply: str | None = None) -> None:
        await self._core.reach()
        self._core.publish(Incoming(subject=subject, payload=payload, headers=dict(headers), reply=reply))

    async def request(self, subject: str, payload: bytes, headers: Headers, *, timeout: float) -> Incoming:
        await self._core.reach(timeout)
        inbox = Subscription(f"_INBOX.{next(_inboxes)}")
        self._core.listen(inbox)
        try:
            sent = Incoming(subject=subject, payload=payload, headers=dict(headers), reply=inbox.subject)
            if not self._core.publish(sent):
                raise NobodyAnswers(f"nobody answers {subject}")
            answer = asyncio.ensure_future(inbox.queue.get())
            await either(asyncio.wait({answer}), self._core.clock.sleep(timeout))
        finally:
            self._core.leave(inbox)
        if not answer.done():
            answer.cancel()
            raise TimedOut(f"no answer on {subject} within {timeout:g} s")
        return answer.result()

    async def subscribe(
        self, subject: str, deliver: Deliver, *, group: str | None = None, start: Start | None = None
    ) -> None:
        await self._core.reach()
        subscription = Subscription(subject, group)
        self._core.listen(subscription)
        self._listening[subscription] = asyncio.create_task(_hand_over(subscription, deliver), name=f"hears {subject}")

    async def catch_up(self, subjects: Sequence[str], *, timeout: float) -> None:
        await self._core.reach(timeout)
        queues = [heard.queue for heard in self._listening if heard.subject in subjects]
        taken = asyncio.gather(*(queue.join() for queue in queues))
        await either(asyncio.wait({taken}), self._core.clock.sleep(timeout))
        if not taken.done():
            taken.cancel()
            raise TimedOut(f"what was told is not handled within {timeout:g} s")

    async def serve(self, endpoint: Endpoint, deliver: Deliver, *, start: Start | None = None) -> None:
        await self.subscribe(endpoint.subject, deliver, group=endpoint.group)

    async def stop_listening(self) -> None:
        for subscription in self._listening:
            self._core.leave(subscription)
        for subscription in self._listening:
            await subscription.queue.join()
        await self.close()

    async def close(self) -> None:
        """End at once: what was not handed over is dropped."""
        ended, self._listening = self._listening, {}
        for subscription, task in ended.items():
            self._core.leave(subscription)
            task.cancel()
        await asyncio.gather(*ended.values(), return_exceptions=True)

    async def ensure_stream(self, stream: Stream, *, change: bool = True) -> None:
        await self._core.reach()
        self._core.ensure_stream(stream, change=change)

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
        await self._core.reach(timeout)
        return self._core.append(subject, payload, headers, message_id=message_id, expect=expect)

    async def read(self, stream: str, *, after: int, subjects: Sequence[str] = ()) -> AsyncIterator[Sequence[Stored]]:
        kept = self._core.stream(stream)
        while True:
            changed = self._core.changed
            if self._core.stream(stream) is not kept:
                raise StreamMadeAnew(f"the stream {stream} was made anew", stream=stream)
            found = kept.after(after, subjects, _BATCH) if self._core.running else ()
            if found:
                after = found[-1].sequence
                yield found
            else:
                await changed.wait()

    async def message(self, stream: str, sequence: int) -> Stored | None:
        await self._core.reach()
        return self._core.stream(stream).message(sequence)

    async def last(self, stream: str, subject: str) -> Stored | None:
        await self._core.reach()
        return self._core.stream(stream).last(subject)

    async def stream_state(self, stream: str) -> StreamState:
        await self._core.reach()
        return self._core.stream(stream).state()

    async def subjects(self, stream: str, pattern: str) -> Sequence[str]:
        await self._core.reach()
        return self._core.stream(stream).subjects(pattern)

    async def purge(self, stream: str, *, below: int, subject: str | None = None) -> None:
        await self._core.reach()
        self._core.stream(stream).purge(below, subject)

    async def pull(
        self,
        stream: str,
        *,
        durable: str,
        subjects: Sequence[str] = (),
        ack_wait_seconds: float = 30.0,
        batch: int = 64,
    ) -> AsyncIterator[Delivery]:
        while True:
            kept = self._core.stream(stream)
            consumer = kept.consumers.setdefault(durable, Consumer())
            changed = self._core.changed
            now = self._core.clock.monotonic()
            stored = kept.next_for(consumer, subjects, now) if self._core.running else None
            if stored is None:
                await self._core.wait(changed, min(consumer.out.values(), default=None))
                continue
            delivered = consumer.take(stored.sequence, now + ack_wait_seconds)
            yield MemoryDelivery(stored, delivered, self._core, consumer, ack_wait_seconds)

    async def ensure_bucket(self, bucket: Bucket) -> None:
        await self._core.reach()
        self._core.buckets.setdefault(bucket.name, MemoryBucket())

    async def get(self, bucket: str, key: str) -> Entry | None:
        await self._core.reach()
        return self._core.bucket(bucket).get(key, self._core.clock.monotonic())

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
        await self._core.reach(timeout)
        now = self._core.clock.monotonic()
        written = self._core.bucket(bucket).put(key, payload, revision=revision, ttl_seconds=ttl_seconds, now=now)
        self._core.tell()
        return written

    async def delete(self, bucket: str, key: str, *, revision: int) -> None:
        await self._core.reach()
        self._core.bucket(bucket).delete(key, revision=revision, now=self._core.clock.monotonic())
        self._core.tell()

    async def watch(self, bucket: str) -> AsyncIterator[Entry]:
        told: set[str] = set()
        while True:
            kept = self._core.bucket(bucket)
            async for entry in self._watch(bucket, kept):
                told.add(entry.key) if entry.payload is not None else told.discard(entry.key)
                yield entry
            there = {entry.key for entry in self._core.bucket(bucket).present()}
            for key in sorted(told - there):
                yield Entry(key=key, payload=None, revision=0)
            told = set()

    async def _watch(self, bucket: str, kept: MemoryBucket) -> AsyncIterator[Entry]:
        """Ends when the bucket was made anew."""
        kept.expire(self._core.clock.monotonic())
        seen = kept.revision
        for entry in kept.present():
            yield entry
        while self._core.bucket(bucket) is kept:
            changed = self._core.changed
            kept.expire(self._core.clock.monotonic())
            found = kept.changes_after(seen) if self._core.running else ()
            for entry in found:
                seen = entry.revision
                yield entry
            if not found:
                await self._core.wait(changed, kept.next_expiry())


async def _hand_over(subscription: Subscription, deliver: Deliver) -> None:
    """One after another, as a connection does: whoever wants several at once hands over to tasks."""
    while True:
        incoming = await subscription.queue.get()
        try:
            await deliver(incoming)
        finally:
            subscription.queue.task_done()
