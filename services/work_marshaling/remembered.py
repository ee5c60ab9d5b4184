"""Ids of submitters whose items ended and were forgotten, so that the same submission does not run twice."""

import base64
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from libs.common.contracts.work_log import Remembered
from services.work_marshaling.identity import id_digest

PER_FACT = 5_000
_WIDTH = 16


class RememberedIds:
    """At most `most` ids, each for `keep`; the oldest go first. 32 bytes each, without the overhead of Python."""

    def __init__(self, *, most: int, keep: timedelta) -> None:
        self._most = most
        self._keep = keep
        self._content: dict[bytes, bytes] = {}
        self._until: deque[tuple[datetime, int]] = deque()
        self._dropped = False

    @property
    def incomplete(self) -> bool:
        """Whether there were ids that are remembered no longer."""
        return self._dropped or len(self._content) >= self._most

    def __len__(self) -> int:
        return len(self._content)

    def content_of(self, work_id: str) -> str | None:
        """The digest of what was submitted under this id, if it is remembered."""
        found = self._content.get(id_digest(work_id))
        return None if found is None else found.hex()

    def remember(self, work_id: str, content: str, now: datetime) -> None:
        self._add([(id_digest(work_id), bytes.fromhex(content))], now + self._keep)
        self.forget(now)

    def forget(self, now: datetime) -> None:
        """Drop what is too old or too much."""
        while self._until and self._until[0][0] <= now:
            self._drop(self._until[0][1])
        while len(self._content) > self._most:
            self._drop(min(self._until[0][1], len(self._content) - self._most))

    def _drop(self, number: int) -> None:
        """The oldest so many, which share one time."""
        until, count = self._until.popleft()
        if count > number:
            self._until.appendleft((until, count - number))
        for oldest in tuple(islice(self._content, number)):
            del self._content[oldest]
        self._dropped = True

    def facts(self) -> Iterator[Remembered]:
        """All of it, for a checkpoint."""
        pairs = iter(self._content.items())
        for until, count in self._until:
            taken = b"".join(key + content for key, content in islice(pairs, count))
            yield Remembered(until=until, count=count, digests=base64.b64encode(taken).decode())

    def restore(self, fact: Remembered) -> None:
        raw = base64.b64decode(fact.digests)
        cut = [(raw[at : at + _WIDTH], raw[at + _WIDTH : at + 2 * _WIDTH]) for at in range(0, len(raw), 2 * _WIDTH)]
        self._add(cut, fact.until)

    def _add(self, pairs: list[tuple[bytes, bytes]], until: datetime) -> None:
        """Ids of about the same time share one entry in `_until`, which is in the order of `_content`."""
        new = [(key, content) for key, content in pairs if key not in self._content]
        self._content.update(new)
        if not new:
            return
        if self._until:
            last, count = self._until[-1]
            if until - last < self._keep / 100 and count + len(new) <= PER_FACT:
                self._until[-1] = (last, count + len(new))
                return
        self._until.append((until, len(new)))
