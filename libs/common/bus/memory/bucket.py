"""A bucket of the in-memory server. No tasks here; time comes as an argument."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.common.bus.transport import Entry
from libs.common.errors import WrongRevision


@dataclass(frozen=True, slots=True)
class _Value:
    entry: Entry
    until: float | None


class MemoryBucket:
    def __init__(self) -> None:
        self._values: dict[str, _Value] = {}
        self._changes: list[Entry] = []
        self._revision = 0

    def get(self, key: str, now: float) -> Entry | None:
        self.expire(now)
        value = self._values.get(key)
        return None if value is None else value.entry

    def put(self, key: str, payload: bytes, *, revision: int, ttl_seconds: int | None, now: float) -> int:
        self._check(key, revision, now)
        entry = self._change(key, payload)
        self._values[key] = _Value(entry, None if ttl_seconds is None else now + ttl_seconds)
        return entry.revision

    def delete(self, key: str, *, revision: int, now: float) -> None:
        self._check(key, revision, now)
        self._values.pop(key, None)
        self._change(key, None)

    def expire(self, now: float) -> None:
        """Remove what has outlived its time, as changes like any other."""
        for key, value in list(self._values.items()):
            if value.until is not None and value.until <= now:
                del self._values[key]
                self._change(key, None)

    def next_expiry(self) -> float | None:
        return min((value.until for value in self._values.values() if value.until is not None), default=None)

    def present(self) -> Sequence[Entry]:
        return sorted((value.entry for value in self._values.values()), key=lambda entry: entry.revision)

    @property
    def revision(self) -> int:
        return self._revision

    def changes_after(self, revision: int) -> Sequence[Entry]:
        return self._changes[revision:]

    def _change(self, key: str, payload: bytes | None) -> Entry:
        self._revision += 1
        entry = Entry(key=key, payload=payload, revision=self._revision)
        self._changes.append(entry)
        return entry

    def _check(self, key: str, revision: int, now: float) -> None:
        present = self.get(key, now)
        found = 0 if present is None else present.revision
        if found != revision:
            raise WrongRevision(f"key {key} has revision {found}, not {revision}", last=found)
