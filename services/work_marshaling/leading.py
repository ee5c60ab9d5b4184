"""Who leads: takes the log over, rebuilds the memory from it, and serves a term. Use cases ask here for the leader."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import DISCOVER, Discover
from libs.common.contracts.streams import WORK_IN, WORK_LOG, WORK_OUT
from libs.common.contracts.work_log import EPOCH, RECORD, WorkRecord
from libs.common.errors import NotFound, Unavailable, WrongRevision
from libs.common.log.fenced_log import FencedLog, SteppedDown
from services.work_marshaling.dispatch import Dispatcher
from services.work_marshaling.intake import Intake
from services.work_marshaling.meter import Meter
from services.work_marshaling.model import Rules
from services.work_marshaling.nodes import Nodes
from services.work_marshaling.payloads import Payloads
from services.work_marshaling.records import EarlierIds
from services.work_marshaling.remembered import RememberedIds
from services.work_marshaling.results import Results
from services.work_marshaling.store import Memory
from services.work_marshaling.term import Chances, Term, Watch
from services.work_marshaling.upkeep import Upkeep

AGAIN_SECONDS = 1.0
BETWEEN_SECONDS = 0.1

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """What there is only while this instance leads."""

    term: Term
    intake: Intake
    dispatcher: Dispatcher
    payloads: Payloads
    results: Results
    upkeep: Upkeep


Companion = Callable[[Leadership], Coroutine[None, None, None]]
"""Runs until cancelled, during each leadership. May raise `SteppedDown`."""


class Leading:
    """`nodes` are known whether we lead or not; everything else belongs to one leadership."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        rules: Rules,
        chances: Chances,
        meter: Meter,
        new_id: Callable[[], str],
        earlier: EarlierIds,
        watch: Watch,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.nodes = Nodes(silence_seconds=rules.node_silence_seconds)
        self._bus = bus
        self._clock = clock
        self._rules = rules
        self._chances = chances
        self._meter = meter
        self._new_id = new_id
        self._earlier = earlier
        self._watch = watch
        self._companions = companions
        self._present: Leadership | None = None
        self._waits_for = "it has not taken over the log yet"
        self._begun = asyncio.Event()

    @property
    def present(self) -> Leadership:
        """Raises `Unavailable` while this instance does not lead."""
        if self._present is None:
            raise Unavailable(f"this instance does not lead: {self._waits_for}")
        return self._present

    def leads(self) -> bool:
        return self._present is not None

    async def begun(self) -> None:
        """Wait until this instance leads."""
        await self._begun.wait()

    def problem(self) -> str | None:
        """Why work cannot be taken in and given out now."""
        return self._waits_for if self._present is None else self._present.term.journal.problem

    async def run(self) -> None:
        """One leadership after another, until cancelled. Raises `SteppedDown` when another instance took over."""
        while True:
            try:
                leadership = await self._take_over()
            except (Unavailable, NotFound, WrongRevision) as error:
                self._waits(f"taking over the log: {error.message}")
                await self._clock.sleep(AGAIN_SECONDS)
                continue
            await self._serve(leadership)
            await self._clock.sleep(BETWEEN_SECONDS)

    async def _take_over(self) -> Leadership:
        origins = {stream.name: (await self._bus.stream_state(stream)).created for stream in (WORK_IN, WORK_OUT)}
        log = FencedLog(self._bus, WORK_LOG, epochs=EPOCH, records=RECORD, holder=self._new_id(), clock=self._clock)
        await log.take_over(origins)
        memory = self._empty_memory()
        started = self._clock.monotonic()
        replayed = await log.replay(memory)
        memory.enter_streams(origins)
        memory.forget(self._clock.now())
        seconds = self._clock.monotonic() - started
        _log.info("log_replayed", records=replayed.records, open_items=memory.open_items, seconds=round(seconds, 3))
        term = self._term(log, memory, origins)
        term.journal.checkpoint_wanted = replayed.since_checkpoint >= self._rules.checkpoint_records
        return self._leadership(term)

    def _empty_memory(self) -> Memory:
        rules = self._rules
        remembered = RememberedIds(most=rules.remembered_most, keep=timedelta(seconds=rules.remembered_keep_seconds))
        return Memory(remembered, ended_most=rules.ended_most, ended_keep=timedelta(seconds=rules.ended_keep_seconds))

    def _term(self, log: FencedLog[WorkRecord], memory: Memory, origins: Mapping[str, datetime]) -> Term:
        return Term(
            bus=self._bus,
            clock=self._clock,
            log=log,
            memory=memory,
            nodes=self.nodes,
            rules=self._rules,
            chances=self._chances,
            meter=self._meter,
            origins=origins,
            watch=self._watch,
        )

    def _leadership(self, term: Term) -> Leadership:
        payloads, results = Payloads(self._bus), Results(self._bus)
        dispatcher = Dispatcher(self._bus, self._clock, term, payloads)
        term.outbox = dispatcher
        return Leadership(
            term=term,
            intake=Intake(self._bus, self._clock, term, results, self._earlier),
            dispatcher=dispatcher,
            payloads=payloads,
            results=results,
            upkeep=Upkeep(self._bus, self._clock, term, payloads),
        )

    async def _serve(self, leadership: Leadership) -> None:
        """Lead until the log says otherwise. Without receipts a new leadership is tried; being replaced is the end."""
        leadership.term.resume()
        self._present = leadership
        self._begun.set()
        self._meter.led(True)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(leadership.term.run(), name="term")
                tasks.create_task(leadership.dispatcher.run(), name="dispatch")
                tasks.create_task(leadership.intake.read_work(), name="read work")
                tasks.create_task(leadership.intake.read_outcomes(), name="read outcomes")
                tasks.create_task(leadership.upkeep.run(), name="upkeep")
                tasks.create_task(self._discover(), name="discover")
                for companion in self._companions:
                    tasks.create_task(companion(leadership), name="companion")
        except* SteppedDown as group:
            self._stepped_down(group)
        finally:
            self._present = None
            self._begun.clear()
            self._meter.led(False)

    def _stepped_down(self, group: BaseExceptionGroup[SteppedDown]) -> None:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, SteppedDown)
        if found.fenced:
            raise found
        self._waits(found.message)

    def _waits(self, reason: str) -> None:
        if reason != self._waits_for:
            _log.warning("not_leading", reason=reason)
        self._waits_for = reason

    async def _discover(self) -> None:
        """Ask all nodes to tell who they are: their next regular word may be a minute away."""
        try:
            await self._bus.publish(DISCOVER, Discover(asked_by="work_marshaling"))
        except Unavailable as error:
            _log.info("discover_not_told", reason=error.message)
