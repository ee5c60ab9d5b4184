"""What the bus needs of a message system, in bytes. Port of `nats/transport.py` and `memory/transport.py`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import Unavailable

Headers = Mapping[str, str]

MESSAGE_ID_HEADER = "Nats-Msg-Id"
"""Where a stored message carries the id it was appended under."""


class StreamMadeAnew(Unavailable):
    """The stream that is being read was lost with the server's disk and made anew: sequences count from one again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A core message as it came. `reply` is the subject an answer is awaited on."""

    subject: str
    payload: bytes
    headers: Headers = field(default_factory=dict)
    reply: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A message as a stream keeps it. `at` is when the server took it."""

    stream: str
    subject: str
    sequence: int
    payload: bytes
    headers: Headers = field(default_factory=dict)
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The server has the message on disk. `duplicate`: it had it before, under the same message id."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Append only if the last message on `subject` still has this sequence (0: none yet). The fence of the log.

    `subject` is None for the subject that is written to.
    """

    sequence: int
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    created: datetime
    messages: int
    bytes: int
    max_bytes: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key's value. `payload` is None when the key was deleted or has expired; only a watch tells that."""

    key: str
    payload: bytes | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests are answered. Instances with the same `group` share them; discovery shows the rest."""

    name: str
    subject: str
    group: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Delivery(Protocol):
    """A message of a durable consumer, ours until it is settled or `ack_wait_seconds` have passed."""

    @property
    def message(self) -> Stored: ...
    @property
    def delivered(self) -> int:
        """How often it was delivered, this time included."""
        ...

    async def ack(self) -> None: ...
    async def nak(self) -> None: ...
    async def working(self) -> None:
        """Not done yet: starts `ack_wait_seconds` anew."""
        ...

    async def term(self, reason: str) -> None:
        """Never deliver it again."""
        ...


Deliver = Callable[[Incoming], Awaitable[None]]
Start = Callable[[Incoming], bool]
"""What `Deliver` would do, if it can be done without waiting; else false, and the message is delivered.

It may be called where no task is around it, and must take microseconds.
"""


class Transport(Protocol):
    """One connection that mends itself.

    What was subscribed, served, read or watched goes on after the server was away. What was declared is made again
    where the server has it no more, with nothing in it: it lost its disk, or somebody deleted it. Every method that
    needs the server raises `Disconnected` when there is no connection and none comes within the time it was given.
    """

    @property
    def max_payload(self) -> int: ...

    @property
    def connections(self) -> int:
        """How many times a connection was made. Grows when the server was away."""
        ...

    @property
    def made_again(self) -> int:
        """How many streams and buckets were gone, and were made again."""
        ...

    def problem(self) -> str | None:
        """Why this is not working now; None when it is."""
        ...

    @property
    def away_seconds(self) -> float | None:
        """For how long there has been no connection; None while there is one."""
        ...

    async def connected(self) -> None:
        """Wait for the first connection, however long that takes. Raises what `failed` raises."""
        ...

    async def failed(self) -> None:
        """Returns only by raising: the reason why this connection can never work (permissions, credentials)."""
        ...

    async def publish(self, subject: str, payload: bytes, headers: Headers, *, reply: str | None = None) -> None:
        """Tell whoever listens now. Raises `TooLarge`, `Disconnected`."""
        ...

    async def request(self, subject: str, payload: bytes, headers: Headers, *, timeout: float) -> Incoming:
        """Raises `NobodyAnswers` at once when nobody listens, `TimedOut`, `Forbidden`, `TooLarge`, `Disconnected`."""
        ...

    async def subscribe(
        self, subject: str, deliver: Deliver, *, group: str | None = None, start: Start | None = None
    ) -> None:
        """When this returns, the server knows of it: a message published next will come."""
        ...

    async def catch_up(self, subjects: Sequence[str], *, timeout: float) -> None:
        """Return once every message of these subscriptions that the server had sent before has been taken by its
        receiver. Raises `TimedOut`, `Disconnected`."""
        ...

    async def serve(self, endpoint: Endpoint, deliver: Deliver, *, start: Start | None = None) -> None:
        """Like `subscribe`, and shown by `nats micro ls|info|stats`."""
        ...

    async def stop_listening(self) -> None:
        """End every subscription and endpoint; what was delivered already is still handled by its receiver."""
        ...

    async def ensure_stream(self, stream: Stream, *, change: bool = True) -> None:
        """Create it, or bring it to this description; without `change` one that is there stays as it is.

        Raises `Conflict` where the server cannot change it.
        """
        ...

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
        """Publish durably: returns when the server has it on disk.

        Until `timeout` the same bytes are sent again after a lost connection or a missing receipt, which
        `message_id` makes harmless. Raises `TimedOut` (it may or may not be there), `StreamFull`, `WrongRevision`,
        `TooLarge`, `Forbidden`, `NobodyAnswers` (no stream keeps this subject).

        A server looks at `expect` before the message id: what is sent again may be refused with `WrongRevision`
        because of itself. `Bus.append` tells that apart.
        """
        ...

    def read(self, stream: str, *, after: int, subjects: Sequence[str] = ()) -> AsyncIterator[Sequence[Stored]]:
        """The stream's messages in order, from `after` + 1, without end; no gap and no repetition across
        reconnections (messages that were purged are passed over). Close the iterator to stop.

        Raises `StreamMadeAnew`, since `after` means nothing any more."""
        ...

    async def message(self, stream: str, sequence: int) -> Stored | None: ...

    async def last(self, stream: str, subject: str) -> Stored | None: ...

    async def stream_state(self, stream: str) -> StreamState:
        """Raises `NotFound`."""
        ...

    async def subjects(self, stream: str, pattern: str) -> Sequence[str]:
        """On which subjects that the pattern covers the stream has messages. Raises `NotFound`."""
        ...

    async def purge(self, stream: str, *, below: int, subject: str | None = None) -> None:
        """Remove every message with a sequence less than `below`."""
        ...

    def pull(
        self,
        stream: str,
        *,
        durable: str,
        subjects: Sequence[str] = (),
        ack_wait_seconds: float = 30.0,
        batch: int = 64,
    ) -> AsyncIterator[Delivery]:
        """The messages of a durable consumer, shared by all who pull it; each must be settled.

        At most `batch` are asked for at once, and only while somebody waits for the next: what nobody here waits for
        is left to others. Raises `NotFound`, `Conflict` (the consumer exists with other settings), `Forbidden`.
        """
        ...

    async def ensure_bucket(self, bucket: Bucket) -> None: ...

    async def get(self, bucket: str, key: str) -> Entry | None: ...

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
        """Write if the key's revision still is `revision` (0: it does not exist). Returns the new revision.

        With `ttl_seconds` (whole, at least 1) the key expires unless it is written again in time. Raises
        `WrongRevision`.
        """
        ...

    async def delete(self, bucket: str, key: str, *, revision: int) -> None: ...

    def watch(self, bucket: str) -> AsyncIterator[Entry]:
        """Every key's present value, then the changes in order; also those that a bucket which was made anew lacks.

        A bucket keeps the newest value of a key only: one that was written over before it could be told is left out.
        """
        ...


Connect = Callable[[str], AbstractAsyncContextManager[Transport]]
"""From a client's name to its connection, which may not be there yet."""
