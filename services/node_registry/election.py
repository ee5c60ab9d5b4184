"""Which of several registries tells changes and writes the archive: the one that holds a lease in the bucket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.errors import Unavailable, WrongRevision
from libs.common.lease.lease import Lease
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
    """`holder` is unique to this process. The lease ends on its own when it is not renewed for `lease_seconds`."""

    def __init__(self, *, bus: Bus, clock: Clock, observer: Observer, holder: str, lease_seconds: int) -> None:
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self.holder = holder
        self._lease = Lease(
            bus=bus,
            clock=clock,
            bucket=NODE_REGISTRY,
            key=LEASE_KEY,
            holder=holder,
            seconds=lease_seconds,
            kind=Publisher,
            tell=self._told,
        )
        self._in_office = False
        self.office: Office | None = None

    def holds(self) -> bool:
        """Whether this registry is the elected one, at this moment."""
        return self._in_office and self._lease.holds()

    async def round(self) -> None:
        """Renew the lease, or take it when nobody holds it. Raises `Unavailable`."""
        if self._in_office and not self._lease.holds():
            self._leave("the lease was not renewed in time")
        other = await self._lease.seek()
        if other is not None:
            if self.office is not None:
                self.office.seen(other)
        elif not self._lease.holds():
            if self._in_office:
                self._leave("another registry holds the lease")
        elif not self._in_office:
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
                        await self._lease.release()
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
        if self._lease.holds() and self.office is not None:
            self._in_office = True
            self._observer.elected(True)
            log.info("elected", holder=self.holder, term=term)
            self.office.begin(Numbers(term))

    def _told(self, written: int) -> Publisher:
        untold, behind = self.office.burden() if self.office is not None else (0, 0.0)
        return Publisher(holder=self.holder, written=written, untold=untold, behind_seconds=behind)

    def _leave(self, reason: str) -> None:
        self._in_office = False
        self._observer.elected(False)
        log.warning("no_longer_elected", holder=self.holder, reason=reason)
