"""Who looks after instances, and how: one orchestrator leads, writes every decision to the log, then acts."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NoReturn

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.lease import Holding
from libs.common.contracts.log import RecordKind
from libs.common.contracts.streams import VLLM_LOG, VLLM_ORCHESTRATOR
from libs.common.contracts.vllm_instances import VLLM_EPOCH, VLLM_RECORD, Instance, InstanceEvent, Stranded, VllmRecord
from libs.common.errors import MeshError, Unavailable, WrongRevision
from libs.common.lease.lease import Lease
from libs.common.log.fenced_log import FencedLog, Stamp, SteppedDown
from libs.common.log.reading import LogReader
from services.vllm_orchestrator.instances import Instances
from services.vllm_orchestrator.rollout import happened, summed_up

LEASE_SECONDS = 6
ROUND_SECONDS = 1.0

Change = Callable[[Instance | None], Instance | None]
"""From what there is to what there is to be. The same: nothing is written. None: it is to be no more, or stays away."""

_log = structlog.get_logger()


class Term:
    """While this orchestrator leads: what there is, and the one way to change it."""

    def __init__(
        self, log: FencedLog[VllmRecord], instances: Instances, clock: Clock, *, checkpoint_records: int, records: int
    ) -> None:
        self.instances = instances
        self.busy: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._log = log
        self._clock = clock
        self._changing = asyncio.Lock()
        self._checkpoint_records = checkpoint_records
        self._records = records

    async def change(self, name: str, decide: Change) -> Instance | None:
        """What it is afterwards; on disk when this returns. Raises `SteppedDown`, `StreamFull`, what `decide` does."""
        async with self._changing:
            before = self.instances.by_name.get(name)
            after = decide(before)
            if after is not None and after != before:
                after = summed_up(after, self._clock.now())
            if after != before:
                await self._write(name, before, after)
            return after

    async def strand(self, processes: Collection[Stranded]) -> None:
        """They are on nodes that are given up. Raises `SteppedDown`, `StreamFull`."""
        await self._note(stranded=tuple(processes))

    async def settle(self, reservation_id: str) -> None:
        """Nothing of it runs any more. Raises `SteppedDown`, `StreamFull`."""
        await self._note(settled=(reservation_id,))

    async def _note(self, **facts: Any) -> None:
        async with self._changing:
            self.instances.apply(await self._append(RecordKind.FACTS, **facts), 0)
            self._records += 1

    async def checkpoint(self) -> None:
        """Let the log begin anew once it has grown long."""
        async with self._changing:
            if self._records < self._checkpoint_records:
                return
            await self._log.begin_checkpoint({})
            for name, instance in self.instances.by_name.items():
                events = tuple(self.instances.events.get(name, ()))
                await self._append(RecordKind.CHECKPOINT, kept=(instance,), events=events)
            await self._append(
                RecordKind.CHECKPOINT,
                generations=dict(self.instances.generations),
                stranded=tuple(self.instances.stranded.values()),
            )
            await self._append(RecordKind.DONE)
            await self._log.purge()
            self._records = 0

    async def _write(self, name: str, before: Instance | None, after: Instance | None) -> None:
        if after is None:
            counted = {name: before.generation} if before is not None and before.generation else {}
            record = await self._append(RecordKind.FACTS, gone=(name,), generations=counted)
        else:
            record = await self._append(RecordKind.FACTS, kept=(after,), events=self._told(before, after))
        self.instances.apply(record, 0)
        self._records += 1

    async def _append(self, kind: RecordKind, **facts: Any) -> VllmRecord:
        made: list[VllmRecord] = []

        def make(stamp: Stamp) -> VllmRecord:
            record = VllmRecord(epoch=stamp.epoch, n=stamp.n, at=stamp.at, kind=kind, **facts)
            made.append(record)
            return record

        await self._log.append(make)
        return made[-1]

    def _told(self, before: Instance | None, after: Instance) -> tuple[InstanceEvent, ...]:
        now = self._clock.now()
        told = tuple(happened(before, after, now))
        for event in told:
            _log.info(
                "instance",
                name=event.name,
                replica=event.replica,
                generation=event.generation,
                state=event.state,
                reason=event.message,
            )
        return told


LookAfter = Callable[[Term], Awaitable[None]]


class Keeping:
    """`look_after` is one round over all instances, again and again while we lead."""

    def __init__(
        self, bus: Bus, clock: Clock, *, holder: str, new_id: Callable[[], str], checkpoint_records: int
    ) -> None:
        self._checkpoint_records = checkpoint_records
        self._bus = bus
        self._clock = clock
        self._new_id = new_id
        self._term: Term | None = None
        self._waits_for = "it has not read the log yet"
        self._lease = Lease(
            bus=bus,
            clock=clock,
            bucket=VLLM_ORCHESTRATOR,
            key="leader",
            holder=holder,
            seconds=LEASE_SECONDS,
            kind=Holding,
            tell=lambda written: Holding(holder=holder, written=written),
        )
        self._other: str | None = None
        self._awake = asyncio.Event()

    @property
    def term(self) -> Term:
        """Raises `Unavailable` while this orchestrator does not lead."""
        if self._term is None:
            raise Unavailable(f"this orchestrator does not look after instances: {self._waits_for}")
        return self._term

    def leads(self) -> bool:
        return self._term is not None

    def leader(self) -> str | None:
        """Another orchestrator that looks after instances, as far as is known; None where it is us or nobody."""
        return None if self.leads() else self._other

    def wake(self) -> None:
        """Something changed: look at once."""
        self._awake.set()

    async def run(self, look_after: LookAfter) -> NoReturn:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._try(look_after)
                except (Unavailable, WrongRevision, SteppedDown) as error:
                    self._waits_for = error.message
                await self._clock.sleep(ROUND_SECONDS)
        finally:
            await self._let_go()

    async def _try(self, look_after: LookAfter) -> None:
        other = await self._lease.seek()
        self._other = other.holder if other is not None else None
        if other is not None:
            self._waits_for = f"{other.holder} does"
        elif self._lease.holds():
            await self._lead(look_after)

    async def _lead(self, look_after: LookAfter) -> None:
        term = await self._taken_over()
        self._term = term
        _log.info("looks_after_instances", instances=len(term.instances.by_name))
        try:
            while self._lease.holds():
                self._awake.clear()
                await look_after(term)
                await term.checkpoint()
                await self._a_while()
                await self._lease.seek()
        finally:
            self._term = None
            for task in term.busy.values():
                task.cancel()
            await asyncio.gather(*term.busy.values(), return_exceptions=True)

    async def _taken_over(self) -> Term:
        log = FencedLog(
            self._bus, VLLM_LOG, epochs=VLLM_EPOCH, records=VLLM_RECORD, holder=self._new_id(), clock=self._clock
        )
        await log.take_over({})
        instances = Instances()
        reader = LogReader(self._bus, VLLM_LOG, epochs=VLLM_EPOCH, records=VLLM_RECORD, rebuild=instances)
        await reader.read_to(log.fence)
        return Term(
            log, instances, self._clock, checkpoint_records=self._checkpoint_records, records=reader.since_checkpoint
        )

    async def _a_while(self) -> None:
        waiting = asyncio.ensure_future(self._awake.wait())
        try:
            await asyncio.wait([waiting], timeout=ROUND_SECONDS)
        finally:
            waiting.cancel()

    async def _let_go(self) -> None:
        try:
            async with asyncio.timeout(ROUND_SECONDS):
                await self._lease.release()
        except (MeshError, TimeoutError) as error:
            _log.info("lease_not_released", reason=str(error))
