"""The bus as a service speaks it: contracts in, contracts out, errors as errors.

What is the same on every transport is written once, here: encoding, decoding, error replies, dead letters, several
handlers at once, correlation ids.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from libs.common.bus.codec import decode, encode, error_reply, read_reply
from libs.common.bus.consuming import Consuming
from libs.common.bus.dead_letters import letter_about, letter_id
from libs.common.bus.handlers import Handlers
from libs.common.bus.objects import Objects
from libs.common.bus.observer import CORRELATION_HEADER, Correlated, Kind, Observer, correlation_id, outcome_of
from libs.common.bus.transport import (
    MESSAGE_ID_HEADER,
    Delivery,
    Endpoint,
    Entry,
    Expect,
    Headers,
    Incoming,
    Receipt,
    Stored,
    StreamState,
    Transport,
)
from libs.common.clock import Clock
from libs.common.contracts.base import DEAD_LETTER, Call, Message, Topic, Written
from libs.common.contracts.streams import Bucket, ObjectBucket, Stream
from libs.common.errors import Internal, Malformed, MeshError, WrongRevision

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

AT_ONCE = 64
_SHOWN_BYTES = 200

_log = structlog.get_logger()


class Bus:
    """`group` names the instances that share the work: each message goes to one of them; without it to all."""

    def __init__(self, transport: Transport, *, name: str, observer: Observer, clock: Clock) -> None:
        self._transport = transport
        self._name = name
        self._observer = observer
        self._clock = clock
        self._handlers = Handlers()

    async def publish(self, topic: Topic[M], message: M | Written[M]) -> None:
        """Tell whoever listens now; nobody is a normal answer. Raises `Disconnected`, `TooLarge`."""
        with self._sending("publish", topic.subject):
            await self._transport.publish(topic.subject, encode(message), self._headers())

    async def request(
        self, call: Call[Q, A], request: Q | Written[Q], *, node_id: str | None = None, timeout: float = 2.0
    ) -> A:
        """Ask. Raises what the other side answered as an error, `NobodyAnswers`, `TimedOut`, `Disconnected`."""
        subject = call.at(node_id)
        with self._sending("request", call.subject):
            answer = await self._transport.request(subject, encode(request), self._headers(), timeout=timeout)
            return read_reply(call.reply, answer.payload, answer.headers)

    async def subscribe(
        self,
        topic: Topic[M],
        handler: Callable[[M], Awaitable[None]],
        *,
        group: str | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """Hear every message from now on, up to `at_once` handlers running (1: strictly one after another).

        A message that cannot be read is counted and logged; the next one is not kept waiting.
        """

        async def handle(incoming: Incoming) -> None:
            with suppress(Exception), self._handling("subscribe", topic.subject, incoming.headers, incoming.payload):
                await handler(self._read(topic.message, topic.subject, incoming.payload))

        if at_once == 1:
            deliver = self._handlers.in_turn(topic.subject, handle)
            await self._transport.subscribe(topic.subject, deliver, group=group)
        else:
            gate = self._handlers.gate(topic.subject, handle, at_once)
            await self._transport.subscribe(topic.subject, gate, group=group, start=gate.start)

    async def catch_up(self, *topics: Topic[Any], timeout: float = 2.0) -> None:
        """Return once what the server had told of these topics before is handled, by handlers that run one at once.

        Who asks how long nobody spoke asks this first: what was said may still wait in the process or on its way.
        Raises `TimedOut`, `Disconnected`.
        """
        await self._transport.catch_up([topic.subject for topic in topics], timeout=timeout)

    async def serve(
        self,
        call: Call[Q, A],
        handler: Callable[[Q], Awaitable[A | Written[A]]],
        *,
        node_id: str | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """Answer. A `MeshError` is answered as such; anything else is logged and answered as `internal`.

        Instances of the owner share the requests, also those of one node's subject.
        """
        subject = call.at(node_id)

        async def handle(incoming: Incoming) -> None:
            headers = incoming.headers
            try:
                with self._handling("serve", call.subject, headers, incoming.payload):
                    answer = await handler(self._read(call.request, call.subject, incoming.payload))
                    await self._answer(incoming, encode(answer), {})
            except MeshError as error:
                await self._decline(incoming, error)
            except Exception:  # noqa: BLE001  # a bug, logged with its trace where it passed; no stranger is told more
                await self._decline(incoming, Internal("internal error"))

        endpoint = Endpoint(
            name=subject.replace(".", "_"), subject=subject, group=call.owner, metadata={"summary": call.summary}
        )
        gate = self._handlers.gate(call.subject, handle, at_once)
        await self._transport.serve(endpoint, gate, start=gate.start)

    async def append(
        self,
        topic: Topic[M],
        message: M | Written[M],
        *,
        message_id: str | None,
        expect: Expect | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        """Publish durably; see `Transport.append` for what is raised.

        `WrongRevision` is not raised when what stands in the way is this very message, kept before its receipt got
        lost: then that is the receipt.
        """
        with self._sending("append", topic.subject):
            try:
                return await self._transport.append(
                    topic.subject,
                    encode(message),
                    self._headers(),
                    message_id=message_id,
                    expect=expect,
                    timeout=timeout,
                )
            except WrongRevision:
                kept = await self._kept_already(topic, message_id)
                if kept is None:
                    raise
                return kept

    def read(self, stream: Stream, *, after: int) -> AsyncIterator[Sequence[Stored]]:
        """The stream in order from `after` + 1, without end. Raises `StreamMadeAnew`."""
        return self._transport.read(stream.name, after=after)

    async def consume(
        self, stream: Stream, *, durable: str, handler: Callable[[Stored], Awaitable[None]], at_once: int = AT_ONCE
    ) -> None:
        """Runs until cancelled: every message of a durable consumer, acknowledged when its handler returned.

        A handler that raises `Malformed` makes a dead letter; any other `MeshError` means: deliver again. Anything
        else is a bug and is raised, in an exception group.
        """
        consuming = Consuming(
            handler,
            handling=lambda stored: self._handling("consume", stored.subject, stored.headers, stored.payload),
            dead_letter=self.dead_letter,
            clock=self._clock,
            at_once=at_once,
        )
        await consuming.run(self._transport.pull(stream.name, durable=durable, batch=at_once))

    def decode(self, topic: Topic[M], stored: Stored) -> M:
        """Raises `Malformed`, with the field and what was expected of it."""
        return self._read(topic.message, topic.subject, stored.payload)

    async def dead_letter(self, stored: Stored, error: MeshError) -> None:
        """Keep a durable message that cannot be used, with its reason; count it.

        Raises what `append` raises: then it is not kept.
        """
        letter = letter_about(
            stored, error, found_by=self._name, at=self._clock.now(), max_payload=self._transport.max_payload
        )
        receipt = await self.append(DEAD_LETTER, letter, message_id=letter_id(stored))
        self._observer.dead_lettered(stored.subject, error.code)
        _log.warning(
            "dead_letter_kept",
            subject=stored.subject,
            stream=stored.stream,
            sequence=stored.sequence,
            letter=receipt.sequence,
            code=error.code,
            reason=error.message,
        )

    async def message(self, stream: Stream, sequence: int) -> Stored | None:
        return await self._transport.message(stream.name, sequence)

    async def last(self, stream: Stream, topic: Topic[M]) -> Stored | None:
        return await self._transport.last(stream.name, topic.subject)

    async def stream_state(self, stream: Stream) -> StreamState:
        return await self._transport.stream_state(stream.name)

    async def purge(self, stream: Stream, *, below: int) -> None:
        await self._transport.purge(stream.name, below=below)

    def objects(self, bucket: ObjectBucket) -> Objects:
        """What is too large for a message."""
        return Objects(self._transport, bucket)

    async def get(self, bucket: Bucket, key: str) -> Entry | None:
        return await self._transport.get(bucket.name, key)

    async def put(
        self, bucket: Bucket, key: str, value: Message, *, revision: int, ttl_seconds: int | None = None
    ) -> int:
        return await self._transport.put(bucket.name, key, encode(value), revision=revision, ttl_seconds=ttl_seconds)

    async def delete(self, bucket: Bucket, key: str, *, revision: int) -> None:
        await self._transport.delete(bucket.name, key, revision=revision)

    def watch(self, bucket: Bucket) -> AsyncIterator[Entry]:
        return self._transport.watch(bucket.name)

    @property
    def connections(self) -> int:
        """How many times a connection was made: who must know of an outage compares it."""
        return self._transport.connections

    @property
    def made_again(self) -> int:
        """How many streams and buckets were gone, and were made again."""
        return self._transport.made_again

    @property
    def away_seconds(self) -> float | None:
        """For how long there has been no connection; None while there is one."""
        return self._transport.away_seconds

    def problem(self) -> str | None:
        """Why this is not working now; None when it is."""
        return self._transport.problem()

    async def drain(self, deadline_seconds: float) -> None:
        """Hear nothing more, finish what is in hand; what is not finished by the deadline is cancelled and named."""
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._transport.stop_listening()
        except TimeoutError:
            _log.warning("deliveries_dropped", deadline_seconds=deadline_seconds)
        except MeshError as error:
            _log.warning("subscriptions_not_ended", code=error.code, reason=error.message)
        left = max(0.0, deadline_seconds - (self._clock.monotonic() - started))
        for subject in await self._handlers.finish(left):
            _log.warning("handler_cut_short", subject=subject, deadline_seconds=deadline_seconds)

    async def _kept_already(self, topic: Topic[M], message_id: str | None) -> Receipt | None:
        """A server compares the expected sequence before it looks at the message id."""
        if topic.stream is None or message_id is None:
            return None
        last = await self._transport.last(topic.stream, topic.subject)
        if last is None or last.headers.get(MESSAGE_ID_HEADER) != message_id:
            return None
        return Receipt(stream=last.stream, sequence=last.sequence, duplicate=True)

    def _headers(self) -> Headers:
        own = correlation_id()
        return self._observer.outgoing() if own is None else {**self._observer.outgoing(), CORRELATION_HEADER: own}

    def _read(self, kind: type[M], subject: str, payload: bytes) -> M:
        try:
            return decode(kind, payload)
        except Malformed:
            self._observer.malformed(subject)
            raise

    def _sending(self, kind: Kind, subject: str) -> "_Sending":
        return _Sending(self._observer, kind, subject)

    def _handling(self, kind: Kind, subject: str, headers: Headers, payload: bytes) -> "_Handling":
        return _Handling(self._observer, kind, subject, headers, payload)

    async def _answer(self, incoming: Incoming, payload: bytes, headers: Headers) -> None:
        if incoming.reply is not None:
            await self._transport.publish(incoming.reply, payload, {**self._headers(), **headers})

    async def _decline(self, incoming: Incoming, error: MeshError) -> None:
        payload, headers = error_reply(error)
        try:
            await self._answer(incoming, payload, headers)
        except MeshError as unsent:
            _log.warning("error_not_answered", subject=incoming.subject, code=unsent.code)


class _Handling:
    """Around a handler: its correlation id, its observation, and one line in the log if it did not succeed."""

    __slots__ = ("_correlated", "_kind", "_observed", "_payload", "_subject")

    def __init__(self, observer: Observer, kind: Kind, subject: str, headers: Headers, payload: bytes) -> None:
        self._correlated = Correlated(headers.get(CORRELATION_HEADER))
        self._observed = observer.handling(kind, subject, headers)
        self._kind: Kind = kind
        self._subject = subject
        self._payload = payload

    def __enter__(self) -> None:
        self._correlated.__enter__()
        self._observed.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self._observed.__exit__(kind, error, trace)
            if isinstance(error, MeshError):
                if self._kind != "consume":  # there it is told what becomes of the message
                    _log_declined(self._kind, self._subject, error, self._payload)
            elif isinstance(error, Exception):
                _log.error("handler_failed", kind=self._kind, subject=self._subject, exc_info=error)
        finally:
            self._correlated.__exit__()


class _Sending:
    """Tells the observer how a sending went. Around every message: a generator would take three times as long."""

    __slots__ = ("_kind", "_observer", "_subject")

    def __init__(self, observer: Observer, kind: Kind, subject: str) -> None:
        self._observer = observer
        self._kind: Kind = kind
        self._subject = subject

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._observer.sent(self._kind, self._subject, outcome_of(error))


def _log_declined(kind: Kind, subject: str, error: MeshError, payload: bytes) -> None:
    shown = {"payload": repr(payload[:_SHOWN_BYTES])} if isinstance(error, Malformed) else {}
    _log.warning("message_declined", kind=kind, subject=subject, code=error.code, reason=error.message, **shown)


__all__ = ["AT_ONCE", "Bus", "Delivery", "Entry", "Expect", "Receipt", "Stored", "StreamState"]
