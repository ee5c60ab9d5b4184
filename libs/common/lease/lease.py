"""A lease on a key of a bucket, for one of several instances. It ends by itself when nobody renews it."""

from collections.abc import Callable
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from libs.common.bus.bus import Bus, Entry
from libs.common.clock import Clock
from libs.common.contracts.lease import Holding
from libs.common.contracts.streams import Bucket
from libs.common.errors import WrongRevision

H = TypeVar("H", bound=Holding)

NOT_HELD = float("-inf")

_log = structlog.get_logger()


class Lease(Generic[H]):
    """`holder` is unique to this process. `tell` makes what is written, from the number of the write; it lives for
    `seconds` after each.

    Whoever holds it counts its time from before the write, the server from after it: so nobody believes longer than
    the server, and two instances never hold it at once.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        bucket: Bucket,
        key: str,
        holder: str,
        seconds: int,
        kind: type[H],
        tell: Callable[[int], H],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._bucket = bucket
        self._key = key
        self._holder = holder
        self._seconds = seconds
        self._kind = kind
        self._tell = tell
        self._until = NOT_HELD
        self._revision = 0
        self._written = 0

    def holds(self) -> bool:
        """Whether it is ours, at this moment."""
        return self._clock.monotonic() < self._until

    async def seek(self, *, instead_of: str | None = None) -> H | None:
        """Renew it, or take it when nobody holds it, or only `instead_of`. Raises `Unavailable`.

        Returns what another holder told, and None when there is none: then it is ours, or another was faster just now.
        """
        began = self._clock.monotonic()
        if not self.holds():
            entry = await self._bus.get(self._bucket, self._key)
            other = None if entry is None else self._read(entry)
            self._revision = 0 if entry is None else entry.revision
            if other is not None and other.holder not in (self._holder, instead_of):
                return other
        if not await self._write(began):
            self._until = NOT_HELD
        return None

    async def release(self) -> None:
        """Let the next one have it at once. Raises `Unavailable`, `WrongRevision` when it is not ours any more."""
        if self.holds():
            self._until = NOT_HELD
            await self._bus.delete(self._bucket, self._key, revision=self._revision)

    async def _write(self, began: float) -> bool:
        """Whether it is ours. A write whose receipt was lost is known again by what it says."""
        self._written += 1
        told = self._tell(self._written)
        try:
            self._revision = await self._bus.put(
                self._bucket, self._key, told, revision=self._revision, ttl_seconds=self._seconds
            )
        except WrongRevision:
            entry = await self._bus.get(self._bucket, self._key)
            found = None if entry is None else self._read(entry)
            if entry is None or found is None or found.holder != self._holder:
                return False
            self._revision = entry.revision
            if found.written != told.written:  # an earlier write that came late: it lives from then
                return self.holds()
        self._until = began + self._seconds
        return True

    def _read(self, entry: Entry) -> H | None:
        """None for something that is no lease: it is written over."""
        try:
            return self._kind.model_validate_json(entry.payload or b"")
        except ValidationError:
            _log.error("lease_unreadable", bucket=self._bucket.name, key=entry.key, revision=entry.revision)
            return None
