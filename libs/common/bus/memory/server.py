"""A message system in memory: what several connections share."""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from libs.common.bus.memory.bucket import MemoryBucket
from libs.common.bus.memory.streams import MemoryStream, header_bytes, matches
from libs.common.bus.transport import MESSAGE_ID_HEADER, Expect, Headers, Incoming, Receipt
from libs.common.clock import Clock
from libs.common.contracts.streams import Stream
from libs.common.errors import Conflict, Disconnected, MeshError, NobodyAnswers, NotFound, TooLarge

MIB = 1024 * 1024
A_MOMENT = timedelta(microseconds=1)


@dataclass(eq=False, slots=True)
class Subscription:
    """What one receiver has been sent and has not taken yet."""

    subject: str
    group: str | None = None
    queue: asyncio.Queue[Incoming] = field(default_factory=asyncio.Queue)


class MemoryCore:
    """Subjects, streams and buckets, and whether they can be reached just now."""

    def __init__(self, clock: Clock, max_payload: int) -> None:
        self.clock = clock
        self.max_payload = max_payload
        self.starts = 1
        self.running = True
        self.stopped_at = 0.0
        self.made_again = 0
        self.buckets: dict[str, MemoryBucket] = {}
        self._streams: dict[str, MemoryStream] = {}
        self._subscriptions: list[Subscription] = []
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change. Take it before looking, so that no change falls between."""
        return self._changed

    def tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def reach(self, within: float = 0.0) -> None:
        """Raises `Disconnected` when the server is not there and does not come within so many seconds."""
        until = self.clock.monotonic() + within
        while not self.running:
            changed = self.changed
            left = until - self.clock.monotonic()
            if left <= 0:
                raise Disconnected("the in-memory server is stopped")
            await either(changed.wait(), self.clock.sleep(left))

    async def wait(self, changed: asyncio.Event, until: float | None) -> None:
        """Until something changed or, if it is given, that moment of the monotonic clock has come."""
        if until is None:
            await changed.wait()
        else:
            await either(changed.wait(), self.clock.sleep(max(0.0, until - self.clock.monotonic())))

    def listen(self, subscription: Subscription) -> None:
        self._subscriptions.append(subscription)

    def leave(self, subscription: Subscription) -> None:
        self._subscriptions = [other for other in self._subscriptions if other is not subscription]

    def publish(self, incoming: Incoming) -> int:
        """Returns how many got it, streams included."""
        self._measure(incoming.payload, incoming.headers)
        stream = self._covering(incoming.subject)
        if stream is not None:
            self._keep_plain(stream, incoming)
        return self._spread(incoming) + (stream is not None)

    def append(
        self, subject: str, payload: bytes, headers: Headers, *, message_id: str | None, expect: Expect | None
    ) -> Receipt:
        self._measure(payload, headers)
        stream = self._covering(subject)
        if stream is None:
            raise NobodyAnswers(f"no stream keeps {subject}")
        receipt = stream.append(
            subject,
            payload,
            headers,
            message_id=message_id,
            expect=expect,
            at=self.clock.now(),
            now=self.clock.monotonic(),
        )
        self._spread(Incoming(subject=subject, payload=payload, headers=headers))
        self.tell()
        return receipt

    def ensure_stream(self, stream: Stream, *, change: bool) -> None:
        for other in self._streams.values():
            if other.description.name != stream.name and any(other.covers(subject) for subject in stream.subjects):
                raise Conflict(f"stream {other.description.name} already keeps a subject of {stream.name}")
        known = self._streams.get(stream.name)
        if known is None:
            self._streams[stream.name] = MemoryStream(stream, self.clock.now())
        elif change:
            known.description = stream

    def empty(self) -> None:
        """What a lost disk leaves once those who are connected have declared their streams and buckets again."""
        for name, stream in self._streams.items():
            made = max(self.clock.now(), stream.state().created + A_MOMENT)
            self._streams[name] = MemoryStream(stream.description, made)
        self.buckets = {name: MemoryBucket() for name in self.buckets}
        self.made_again += len(self._streams) + len(self.buckets)

    def stream(self, name: str) -> MemoryStream:
        if name not in self._streams:
            raise NotFound(f"there is no stream {name}")
        return self._streams[name]

    def bucket(self, name: str) -> MemoryBucket:
        if name not in self.buckets:
            raise NotFound(f"there is no bucket {name}")
        return self.buckets[name]

    def _covering(self, subject: str) -> MemoryStream | None:
        return next((stream for stream in self._streams.values() if stream.covers(subject)), None)

    def _keep_plain(self, stream: MemoryStream, incoming: Incoming) -> None:
        """As a server does with a plain publish: whoever waits for a reply gets the receipt, nobody else learns."""
        answer: Mapping[str, object]
        try:
            receipt = stream.append(
                incoming.subject,
                incoming.payload,
                incoming.headers,
                message_id=incoming.headers.get(MESSAGE_ID_HEADER),
                expect=None,
                at=self.clock.now(),
                now=self.clock.monotonic(),
            )
            answer = {"stream": receipt.stream, "seq": receipt.sequence}
            answer = {**answer, "duplicate": True} if receipt.duplicate else answer
        except MeshError as error:
            answer = {"error": {"code": error.status, "description": error.message}}
        self.tell()
        if incoming.reply is not None:
            self._spread(Incoming(subject=incoming.reply, payload=json.dumps(answer).encode()))

    def _spread(self, incoming: Incoming) -> int:
        """To every subscription without a group, and to one of each group, in turn."""
        groups: dict[str, list[Subscription]] = {}
        receivers: list[Subscription] = []
        for subscription in self._subscriptions:
            if not matches(subscription.subject, incoming.subject):
                continue
            if subscription.group is None:
                receivers.append(subscription)
            else:
                groups.setdefault(subscription.group, []).append(subscription)
        self._turn += 1
        receivers.extend(members[self._turn % len(members)] for members in groups.values())
        for receiver in receivers:
            receiver.queue.put_nowait(incoming)
        return len(receivers)

    def _measure(self, payload: bytes, headers: Headers) -> None:
        size = len(payload) + header_bytes(headers)
        if size > self.max_payload:
            raise TooLarge(f"{size} bytes are more than the server takes: {self.max_payload}", bytes=size)


async def either(*waits: Coroutine[Any, Any, object]) -> None:
    """Until the first of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
