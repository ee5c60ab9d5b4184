"""Which of several registries tells changes and writes the archive: the one that holds a lease in the bucket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
from pydantic import ValidationError

from libs.common.bus.bus import Bus, Entry
from libs.common.clock import Clock
from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.errors import Unavailable, WrongRevision
from services.node_registry.model import Publisher, Term
from services.node_registry.numbering import Numbers, next_term
from services.node_registry.observer import Observer

log = structlog.get_logger()

LEASE_KEY = "publisher"
TERM_KEY = "term"
RELEASE_SECONDS = 1.0


class Office(Protocol):
    """What the elected registry does. Use case of `publishing.py`."""

    def begin(self, numbers: Numbers) -> None:
        """We were elected."""
        ...

    def seen(self, lease: Publisher) -> None:
        """Another registry is elected, and says how far it is."""
        ...

    def burden(self) -> tuple[int, float]:
        """`untold` and `behind_seconds` of the lease."""
        ...


class Election:
    """`holder` is unique to this process. The lease ends on its own when it is not renewed for `lease_seconds`.

    Whoever holds it counts its time from before the write, the server from after it: so it never believes longer than
    the server, and two registries never hold it at once.
    """

    def __init__(self, *, bus: Bus, clock: Clock, observer: Observer, holder: str, lease_seconds: int) -> None:
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self.holder = holder
        self._lease_seconds = lease_seconds
        self._until = float("-inf")
        self._revision = 0
        self._written = 0
        self._in_office = False
        self.office: Office | None = None

    def holds(self) -> bool:
        """Whether this registry is the elected one, at this moment."""
        return self._in_office and self._clock.monotonic() < self._until

    async def round(self) -> None:
        """Renew the lease, or take it when nobody holds it. Raises `Unavailable`."""
        began = self._clock.monotonic()
        if self.holds():
            if not await self._write(began):
                self._leave("another registry holds the lease")
            return
        if self._in_office:
            self._leave("the lease was not renewed in time")
        lease = await self._bus.get(NODE_REGISTRY, LEASE_KEY)
        known = None if lease is None else _read(lease)
        if known is not None and known.holder != self.holder:
            if self.office is not None:
                self.office.seen(known)
            return
        self._revision = 0 if lease is None else lease.revision
        if await self._write(began):
            await self._begin()

    @asynccontextmanager
    async def released(self) -> AsyncIterator[None]:
        """At the end the lease is given back, so that the next registry need not wait for its end."""
        try:
            yield
        finally:
            if self.holds():
                try:
                    async with asyncio.timeout(RELEASE_SECONDS):
                        await self._bus.delete(NODE_REGISTRY, LEASE_KEY, revision=self._revision)
                except (Unavailable, WrongRevision, TimeoutError) as error:
                    log.info("lease_not_released", reason=str(error))
                self._leave("stopping")

    async def _begin(self) -> None:
        """A lease alone is nothing: the term that all numbers begin with must be newer than any before."""
        entry = await self._bus.get(NODE_REGISTRY, TERM_KEY)
        last = Term.model_validate_json(entry.payload).term if entry is not None and entry.payload else 0
        term = next_term(now_milliseconds=int(self._clock.now().timestamp() * 1000), last=last)
        revision = entry.revision if entry is not None else 0
        try:
            await self._bus.put(NODE_REGISTRY, TERM_KEY, Term(holder=self.holder, term=term), revision=revision)
        except WrongRevision:
            return  # another one is at it, or our own write came through: the next round looks again
        if self._clock.monotonic() < self._until and self.office is not None:
            self._in_office = True
            self._observer.elected(True)
            log.info("elected", holder=self.holder, term=term)
            self.office.begin(Numbers(term))

    async def _write(self, began: float) -> bool:
        """Whether the lease is ours. A write whose receipt was lost is known again by what it says."""
        self._written += 1
        untold, behind = self.office.burden() if self.office is not None else (0, 0.0)
        lease = Publisher(holder=self.holder, written=self._written, untold=untold, behind_seconds=behind)
        try:
            self._revision = await self._bus.put(
                NODE_REGISTRY, LEASE_KEY, lease, revision=self._revision, ttl_seconds=self._lease_seconds
            )
        except WrongRevision:
            entry = await self._bus.get(NODE_REGISTRY, LEASE_KEY)
            found = None if entry is None else _read(entry)
            if entry is None or found is None or found.holder != self.holder:
                return False
            self._revision = entry.revision
            if found.written != lease.written:  # an earlier write that came late: it lives from then
                return self.holds()
        self._until = began + self._lease_seconds
        return True

    def _leave(self, reason: str) -> None:
        self._in_office = False
        self._until = float("-inf")
        self._observer.elected(False)
        log.warning("no_longer_elected", holder=self.holder, reason=reason)


def _read(entry: Entry) -> Publisher | None:
    """None for something that is no lease: it is written over."""
    try:
        return Publisher.model_validate_json(entry.payload or b"")
    except ValidationError:
        log.error("lease_unreadable", key=entry.key, revision=entry.revision)
        return None
