"""What the in-memory server keeps: streams with their consumers. No tasks here; time comes as an argument."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from libs.common.bus.transport import MESSAGE_ID_HEADER, Expect, Headers, Receipt, Stored, StreamState
from libs.common.contracts.streams import Stream
from libs.common.errors import StreamFull, WrongRevision

_RECORD_BYTES = 30


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is covered by a pattern with the wildcards `*` (one token) and `>` (all the rest)."""
    if pattern == subject:
        return True
    wanted, found = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(found) > index
        if index >= len(found) or token not in ("*", found[index]):
            return False
    return len(wanted) == len(found)


@dataclass(slots=True)
class Consumer:
    """A durable consumer: where it stands, what is out, what must be delivered again."""

    position: int = 0
    out: dict[int, float] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    delivered: dict[int, int] = field(default_factory=dict)

    def expire(self, now: float) -> None:
        for sequence in [sequence for sequence, until in self.out.items() if until <= now]:
            self.give_back(sequence)

    def give_back(self, sequence: int) -> None:
        if self.out.pop(sequence, None) is not None:
            self.again.append(sequence)

    def settle(self, sequence: int) -> None:
        self.out.pop(sequence, None)
        self.delivered.pop(sequence, None)

    def take(self, sequence: int, until: float) -> int:
        self.out[sequence] = until
        self.delivered[sequence] = self.delivered.get(sequence, 0) + 1
        return self.delivered[sequence]


class MemoryStream:
    def __init__(self, stream: Stream, created: datetime) -> None:
        self.description = stream
        self.consumers: dict[str, Consumer] = {}
        self._created = created
        self._messages: dict[int, Stored] = {}
        self._last_of: dict[str, int] = {}
        self._last = 0
        self._bytes = 0
        self._ids: dict[str, tuple[int, float]] = {}

    def covers(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.description.subjects)

    def describe(self, stream: Stream) -> None:
        self.description = stream

    def append(
        self,
        subject: str,
        payload: bytes,
        headers: Headers,
        *,
        message_id: str | None,
        expect: Expect | None,
        at: datetime,
        now: float,
    ) -> Receipt:
        if expect is not None:  # before the message id is looked at, as the server does
            self._check(expect, subject)
        known = self._known(message_id, now)
        if known is not None:
            return Receipt(stream=self.description.name, sequence=known, duplicate=True)
        kept = {**headers, MESSAGE_ID_HEADER: message_id} if message_id is not None else dict(headers)
        size = _size(subject, payload, kept)
        self._make_room(size)
        self._last += 1
        self._messages[self._last] = Stored(
            stream=self.description.name, subject=subject, sequence=self._last, payload=payload, headers=kept, at=at
        )
        self._bytes += size
        self._last_of[subject] = self._last
        if message_id is not None:
            self._ids[message_id] = (self._last, now + self.description.duplicate_window_seconds)
        return Receipt(stream=self.description.name, sequence=self._last)

    def after(self, sequence: int, subjects: Sequence[str], limit: int) -> Sequence[Stored]:
        found: list[Stored] = []
        for at in range(max(sequence, self.first - 1) + 1, self._last + 1):
            stored = self._messages.get(at)
            if stored is not None and (not subjects or any(matches(pattern, stored.subject) for pattern in subjects)):
                found.append(stored)
                if len(found) == limit:
                    break
        return found

    def message(self, sequence: int) -> Stored | None:
        return self._messages.get(sequence)

    def last(self, subject: str) -> Stored | None:
        return self._messages.get(self._last_of.get(subject, 0))

    def subjects(self, pattern: str) -> Sequence[str]:
        there = dict.fromkeys(stored.subject for stored in self._messages.values())
        return [subject for subject in there if matches(pattern, subject)]

    def purge(self, below: int, subject: str | None) -> None:
        for sequence in [sequence for sequence in self._messages if sequence < below]:
            if subject is None or matches(subject, self._messages[sequence].subject):
                self._remove(sequence)

    @property
    def first(self) -> int:
        """The first sequence that is kept; one past the last when there is none."""
        return next(iter(self._messages), self._last + 1)

    def state(self) -> StreamState:
        return StreamState(
            created=self._created,
            messages=len(self._messages),
            bytes=self._bytes,
            max_bytes=self.description.max_bytes,
            first_sequence=self.first,
            last_sequence=self._last,
        )

    def next_for(self, consumer: Consumer, subjects: Sequence[str], now: float) -> Stored | None:
        """What the consumer is due: first what must come again, then what it has not seen."""
        consumer.expire(now)
        while consumer.again:
            stored = self._messages.get(consumer.again.popleft())
            if stored is not None:
                return stored
        fresh = self.after(consumer.position, subjects, 1)
        if not fresh:
            return None
        consumer.position = fresh[0].sequence
        return fresh[0]

    def _known(self, message_id: str | None, now: float) -> int | None:
        while self._ids:
            oldest = next(iter(self._ids))
            if self._ids[oldest][1] > now:
                break
            del self._ids[oldest]
        found = self._ids.get(message_id) if message_id is not None else None
        return None if found is None else found[0]

    def _check(self, expect: Expect, subject: str) -> None:
        last = self._last_sequence(expect.subject or subject)
        if last != expect.sequence:
            raise WrongRevision(
                f"the last message on {expect.subject or subject} is {last}, not {expect.sequence}", last=last
            )

    def _last_sequence(self, subject: str) -> int:
        stored = self.last(subject)
        return 0 if stored is None else stored.sequence

    def _make_room(self, size: int) -> None:
        while self._bytes + size > self.description.max_bytes:
            if self.description.discard == "new" or not self._messages:
                raise StreamFull(f"stream {self.description.name} is full", max_bytes=self.description.max_bytes)
            self._remove(self.first)

    def _remove(self, sequence: int) -> None:
        stored = self._messages.pop(sequence)
        self._bytes -= _size(stored.subject, stored.payload, stored.headers)


def _size(subject: str, payload: bytes, headers: Headers) -> int:
    return _RECORD_BYTES + len(subject) + len(payload) + header_bytes(headers)


def header_bytes(headers: Headers) -> int:
    return sum(len(key) + len(value) + 4 for key, value in headers.items())
