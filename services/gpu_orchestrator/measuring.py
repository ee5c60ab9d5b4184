"""What is measured, and when a measurement is young enough to give memory away on it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import GpuState, ReservationState
from libs.common.contracts.node_registry import Problem
from libs.common.errors import Unavailable
from services.gpu_orchestrator.bookkeeping import Bookkeeping
from services.gpu_orchestrator.devices import devices_of, ram_used_mb
from services.gpu_orchestrator.machine import Held, looked_at, spared
from services.gpu_orchestrator.meters import Family, Meters, Processes, Root
from services.gpu_orchestrator.model import RAM, Entry
from services.gpu_orchestrator.observer import Observer
from services.gpu_orchestrator.sharing import Shared

log = structlog.get_logger()

UNKNOWN: Mapping[str, int | None] = {"": None}
"""A look that saw nothing."""


class Look(NamedTuple):
    """At what is in use, on its way. What it shows is of a time after it was begun."""

    gpus: "asyncio.Future[Mapping[str, int | None]] | None"
    ram: bool


class Measuring:
    """Keeps the book's ledger true. `measure_seconds`: how old a whole measurement may be on which something is given,
    even though what is in use did not change since. `still_seconds`: who did not look for so long stood still, and
    owners of reservations then get so long to renew.
    """

    def __init__(
        self,
        *,
        meters: Meters,
        processes: Processes,
        bookkeeping: Bookkeeping,
        clock: Clock,
        observer: Observer,
        measure_seconds: float,
        still_seconds: float,
    ) -> None:
        self._meters = meters
        self._processes = processes
        self._bookkeeping = bookkeeping
        self._book = bookkeeping.book
        self._clock = clock
        self._observer = observer
        self._measure_seconds = measure_seconds
        self._still_seconds = still_seconds
        self._measured_at = float("-inf")
        self._looked_at = clock.monotonic()
        self._waking = asyncio.Lock()
        self.owners: Mapping[int, tuple[str, ...]] = {}
        self.problems: tuple[Problem, ...] = ()
        self.refresh = Shared(self._measure)
        """Measure everything; the measurement began after the call."""
        self._look_at_gpus = Shared(self._gpus_used, eager=True)

    @property
    def has_measured(self) -> bool:
        return self._measured_at > float("-inf")

    @property
    def ledger(self) -> Mapping[str, Entry]:
        return self._book.ledger

    @property
    def states(self) -> Sequence[GpuState]:
        return self._book.states

    async def close(self) -> None:
        for shared in (self.refresh, self._look_at_gpus):
            await shared.close()

    def begin(self, *, gpus: bool, ram: bool) -> Look:
        """Ask what is in use, in this step if nobody else is waiting for an answer. Those who wait share the next."""
        return Look(self._look_at_gpus.begin() if gpus else None, ram)

    async def current(self, look: Look) -> bool:
        """Make the ledger that of a time after `look` was begun: by what it shows, which costs little, or by a whole
        measurement where that does not do.

        Returns whether all is as it was measured; if not, what grew is kept from everybody. Raises `Unavailable`.
        """
        if self._clock.monotonic() - self._measured_at >= self._measure_seconds:
            await self.refresh()
            return True
        used = {} if look.gpus is None else await look.gpus
        if look.ram:  # read last: who waits for the GPUs' answer has something on its way to the disk meanwhile
            used = {**used, RAM: self._ram_used()}
        if self._book.knows(used):
            return self._book.looked_at(used)
        await self.refresh()
        return True

    def _gpus_used(self) -> Awaitable[Mapping[str, int | None]]:
        return _seen(self._meters.used_mb())

    def _ram_used(self) -> int | None:
        memory = self._meters.memory_now()
        return None if memory is None else ram_used_mb(memory)

    async def _measure(self) -> None:
        began = self._clock.monotonic()
        graphics, (memory, problems) = await asyncio.gather(self._meters.gpus(), self._meters.memory())
        family = await self._families()
        await self._judge(family)
        self.owners = family.owners
        tokens = {held.reservation_id: held.token for held in self._book.open_ones()}
        held_ram = (([name for name in names if name in tokens], mb) for names, mb in family.ram_mb.items())
        ram = {tokens[names[0]]: (tuple(names), mb) for names, mb in held_ram if names}
        devices = devices_of(graphics.states, memory, family.owners, family.commands, ram, self._book.states)
        events = self._book.measured(graphics.states, graphics.links, devices, self._clock.monotonic())
        self.problems, self._measured_at = (*graphics.problems, *problems), began
        for event in events:
            self._observer.happened(event.kind)
            log.warning(
                "ledger_event",
                kind=event.kind,
                device=event.device,
                reservation_id=event.reservation_id,
                pid=event.pid,
                reason=event.message,
            )
        self._observer.reckoned(self._book.ledger, self._states())

    def _states(self) -> Mapping[str, int]:
        return Counter(str(held.state) for held in self._book.open_ones())

    async def _families(self) -> Family:
        held_by: dict[tuple[int | None, int | None, str | None], list[str]] = {}
        for held in self._book.open_ones():
            if held.state == ReservationState.COMMITTED:
                held_by.setdefault((held.pid, held.pid_start, held.container_id), []).append(held.reservation_id)
        roots = [
            Root(reservation_ids=tuple(names), pid=pid, pid_start=start, container_id=container_id)
            for (pid, start, container_id), names in held_by.items()
        ]
        return await self._processes.families(roots, self._left_behind())

    def _left_behind(self) -> set[int]:
        """Processes that were seen to be ours and whose reservations have ended: of these is told what they run."""
        kept = {held.reservation_id for held in self._book.open_ones()}
        gpus = (entry for uuid, entry in self._book.ledger.items() if uuid != RAM)
        return {pid for entry in gpus for pid, names in entry.owners.items() if kept.isdisjoint(names)}

    async def _judge(self, family: Family) -> None:
        """Expire and end what time and processes ended. A container that was never seen from here ends by release."""
        await self.woke()
        now, at = self._clock.monotonic(), self._clock.now()

        def alive(held: Held) -> bool | None:
            told = family.alive.get(held.reservation_id)
            return None if held.container_id and not held.container_seen and not told else told

        def decide(held: Held) -> Held:
            return looked_at(held, alive=alive(held), now=now, at=at)

        await self._apply(decide)

    async def woke(self) -> None:
        """Before anything is judged by the clock: whether this service, or the whole machine, stood still. Who would
        have renewed then gets the time to do so."""
        async with self._waking:
            now = self._clock.monotonic()
            if now - self._looked_at > self._still_seconds:
                await self._spare(now)
            self._looked_at = now

    async def _spare(self, now: float) -> None:
        log.warning("stood_still", seconds=round(now - self._looked_at, 1))
        await self._apply(lambda held: spared(held, now + self._still_seconds))

    async def _apply(self, decide: Callable[[Held], Held]) -> None:
        over = [held for held in self._book.open_ones() if decide(held) is not held]
        await asyncio.gather(*(self._bookkeeping.change(held.reservation_id, decide) for held in over))


async def _seen(asked: Awaitable[Mapping[str, int | None] | None]) -> Mapping[str, int | None]:
    try:
        used_mb = await asked
    except Unavailable:
        return UNKNOWN
    return UNKNOWN if used_mb is None else used_mb
