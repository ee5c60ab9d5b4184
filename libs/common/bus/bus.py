"""The bus as a service speaks it: contracts in, contracts out, errors as errors.

What is the same on every transport is written once, here: encoding, decoding, error replies, dead letters, several
handlers at once, correlation ids.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from libs.common.bus.transport import Delivery, Entry, Expect, Receipt, Stored, StreamState
from libs.common.contracts.base import Call, Message, Topic
from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import MeshError

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

AT_ONCE = 64


class Bus(Protocol):
    """`group` names the instances that share the work: each message goes to one of them; without it to all."""

    async def publish(self, topic: Topic[M], message: M) -> None:
        """Tell whoever listens now; nobody is a normal answer. Raises `Disconnected`, `TooLarge`."""
        ...

    async def request(self, call: Call[Q, A], request: Q, *, node_id: str | None = None, timeout: float = 2.0) -> A:
        """Ask. Raises what the other side answered as an error, `NobodyAnswers`, `TimedOut`, `Disconnected`."""
        ...

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
        ...

    async def serve(
        self,
        call: Call[Q, A],
        handler: Callable[[Q], Awaitable[A]],
        *,
        node_id: str | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """Answer. A `MeshError` is answered as such; anything else is logged and answered as `internal`.

        Instances of the owner share the requests, also those of one node's subject.
        """
        ...

    async def append(
        self,
        topic: Topic[M],
        message: M,
        *,
        message_id: str | None,
        expect: Expect | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        """Publish durably; see `Transport.append` for what is raised."""
        ...

    def read(self, stream: Stream, *, after: int) -> AsyncIterator[Sequence[Stored]]:
        """The stream in order from `after` + 1, without end."""
        ...

    async def consume(
        self, stream: Stream, *, durable: str, handler: Callable[[Stored], Awaitable[None]], at_once: int = AT_ONCE
    ) -> None:
        """Runs until cancelled: every message of a durable consumer, acknowledged when its handler returned.

        A handler that raises `Malformed` makes a dead letter; any other `MeshError` means: deliver again.
        """
        ...

    def decode(self, topic: Topic[M], stored: Stored) -> M:
        """Raises `Malformed`, with the field and what was expected of it."""
        ...

    async def dead_letter(self, stored: Stored, error: MeshError) -> None:
        """Keep a durable message that cannot be used, with its reason; count it."""
        ...

    async def message(self, stream: Stream, sequence: int) -> Stored | None: ...
    async def last(self, stream: Stream, topic: Topic[M]) -> Stored | None: ...
    async def stream_state(self, stream: Stream) -> StreamState: ...
    async def purge(self, stream: Stream, *, below: int) -> None: ...

    async def get(self, bucket: Bucket, key: str) -> Entry | None: ...
    async def put(
        self, bucket: Bucket, key: str, value: Message, *, revision: int, ttl_seconds: int | None = None
    ) -> int: ...
    async def delete(self, bucket: Bucket, key: str, *, revision: int) -> None: ...
    def watch(self, bucket: Bucket) -> AsyncIterator[Entry]: ...

    @property
    def connections(self) -> int:
        """How many times a connection was made: who must know of an outage compares it."""
        ...

    def problem(self) -> str | None: ...


__all__ = ["AT_ONCE", "Bus", "Delivery", "Entry", "Expect", "Receipt", "Stored", "StreamState"]
