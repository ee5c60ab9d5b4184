"""Which instance tries to lead: the one that holds a lease. The log alone decides who does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.streams import WORK_MARSHALING
from libs.common.contracts.work_leading import LEADER, Leader, LeaderAsked
from libs.common.errors import NobodyAnswers, Unavailable, WrongRevision
from libs.common.lease.lease import Lease

LEASE_KEY = "leader"
LOOK_SECONDS = 0.5
ROUNDS = 3
MISSED = 2
ANSWER_SECONDS = 1.0
RELEASE_SECONDS = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Instance:
    """Who we are: an id of this process alone, the machine, where our HTTP door listens."""

    instance_id: str
    node_id: str
    port: int


class Election:
    """`other` is whoever leads as far as we know, None while nobody does or we do. `unanswered`: it was asked in vain.

    A lease ends `lease_seconds` after its last renewal. Whoever holds it and has no connection any more (nobody listens
    on its own subject, twice) is not waited for: to try too early is harmless, since the log has one writer whoever
    tries.
    """

    def __init__(self, *, bus: Bus, clock: Clock, instance: Instance, lease_seconds: int) -> None:
        self.instance = instance
        self.other: Leader | None = None
        self.unanswered = False
        self.state: Callable[[], tuple[int, str | None]] = lambda: (0, None)
        self._bus = bus
        self._clock = clock
        self._pause = lease_seconds / ROUNDS
        self._changed = asyncio.Event()
        self._lease = Lease(
            bus=bus,
            clock=clock,
            bucket=WORK_MARSHALING,
            key=LEASE_KEY,
            holder=instance.instance_id,
            seconds=lease_seconds,
            kind=Leader,
            tell=self._told,
        )

    async def won(self) -> None:
        """Wait until the lease is ours."""
        missed = 0
        while True:
            gone = self.other.holder if self.other is not None and missed >= MISSED else None
            try:
                self._see(await self._lease.seek(instead_of=gone))
            except Unavailable as error:
                _log.debug("lease_not_seen", reason=error.message)
                missed = 0
            else:
                if self._lease.holds():
                    return
                missed = missed + 1 if await self._gone() else 0
            await self._clock.sleep(LOOK_SECONDS)

    async def keep(self, confirm: Callable[[], Awaitable[None]]) -> None:
        """Renew the lease until cancelled. While another has it, `confirm` asks the log, and raises when we were
        replaced."""
        while True:
            try:
                if await self._lease.seek() is not None:
                    await confirm()
            except Unavailable as error:
                _log.debug("lease_not_renewed", reason=error.message)
            await self._clock.sleep(self._pause)

    @asynccontextmanager
    async def released(self) -> AsyncIterator[None]:
        """At the end the lease is given back, so that the next leader need not wait for its end."""
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._lease.release()
            except (Unavailable, WrongRevision, TimeoutError) as error:
                _log.info("lease_not_released", reason=str(error))

    async def changed(self) -> None:
        """Wait until another leads than now."""
        await self._changed.wait()

    async def _gone(self) -> bool:
        """Whether nobody is there who could lead. One that stands still may be: its lease will end."""
        if self.other is None:
            self.unanswered = False
            return False
        try:
            asked = LeaderAsked(asked_by=self.instance.instance_id)
            await self._bus.request(LEADER, asked, node_id=self.other.holder, timeout=ANSWER_SECONDS)
        except Unavailable as error:
            self.unanswered = True
            _log.debug("leader_does_not_answer", reason=error.message)
            return isinstance(error, NobodyAnswers)
        self.unanswered = False
        return False

    def _see(self, found: Leader | None) -> None:
        before, self.other = self.other, found
        if (before and before.holder) != (found and found.holder):
            self._changed.set()
            self._changed = asyncio.Event()
            if found is not None:
                _log.info("stands_by", leader=found.holder, node_id=found.node_id, port=found.port)

    def _told(self, written: int) -> Leader:
        epoch, problem = self.state()
        return Leader(
            holder=self.instance.instance_id,
            written=written,
            node_id=self.instance.node_id,
            port=self.instance.port,
            epoch=epoch,
            problem=problem,
        )
