"""Who leads: follows the log, takes it over, and serves a term. Use cases ask here for the leader."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.transport import StreamMadeAnew
from libs.common.clock import Clock
from libs.common.contracts.node_registry import DISCOVER, Discover
from libs.common.contracts.streams import WORK_IN, WORK_LOG, WORK_OUT
from libs.common.contracts.work_leading import Leader
from libs.common.contracts.work_log import EPOCH, RECORD, WorkRecord
from libs.common.errors import MeshError, NotFound, StreamFull, Unavailable, WrongRevision
from libs.common.log.fenced_log import FencedLog, SteppedDown
from libs.common.log.position import Position
from libs.common.log.reading import LogReader
from services.work_marshaling.dispatch import Dispatcher
from services.work_marshaling.election import Election
from services.work_marshaling.intake import Intake
from services.work_marshaling.large import Large
from services.work_marshaling.meter import Meter, Role
from services.work_marshaling.model import Rules, WorkItem
from services.work_marshaling.nodes import Nodes
from services.work_marshaling.payloads import Payloads
from services.work_marshaling.records import EarlierIds
from services.work_marshaling.remembered import RememberedIds
from services.work_marshaling.results import Results
from services.work_marshaling.store import Memory
from services.work_marshaling.term import Chances, Term, Watch
from services.work_marshaling.upkeep import Upkeep

AGAIN_SECONDS = 1.0
RETRY_SECONDS = 1
FULL_SECONDS = 5
BETWEEN_SECONDS = 0.1

Origins = Mapping[str, datetime]
"""When each input stream was made."""

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


class Known(Protocol):
    """What any instance knows of items: the leader first, one that stands by a moment later."""

    @property
    def memory(self) -> Memory: ...
    @property
    def made(self) -> datetime:
        """When WORK_IN was made."""
        ...

    async def admitted(self, sequence: int) -> None:
        """Wait until WORK_IN has been read so far."""
        ...

    def unsatisfiable(self, item: WorkItem) -> str | None:
        """Why no node could ever run it; only the leader looks."""
        ...


class _Present:
    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership
        self.memory = leadership.term.memory
        self.made = leadership.term.origins[WORK_IN.name]

    async def admitted(self, sequence: int) -> None:
        await self._leadership.intake.admitted.reached(sequence)

    def unsatisfiable(self, item: WorkItem) -> str | None:
        return self._leadership.term.unsatisfiable(item)


class _Standing:
    def __init__(self, memory: Memory, position: Position, origins: Origins) -> None:
        self.memory = memory
        self._position = position
        self._origins = origins

    @property
    def made(self) -> datetime:
        return self.memory.origins.get(WORK_IN.name, self._origins[WORK_IN.name])

    async def admitted(self, sequence: int) -> None:
        while self.memory.in_seq < sequence:
            await self._position.reached(self._position.value + 1)

    def unsatisfiable(self, item: WorkItem) -> str | None:
        return None


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
        large: Large,
        companions: Sequence[Companion] = (),
        election: Election,
    ) -> None:
        self.nodes = Nodes(silence_seconds=rules.node_silence_seconds, kept_seconds=rules.node_kept_seconds)
        self._bus = bus
        self._clock = clock
        self._rules = rules
        self._chances = chances
        self._meter = meter
        self._new_id = new_id
        self._earlier = earlier
        self._watch = watch
        self._large = large
        self._companions = companions
        self._election = election
        election.state = self._state
        self._present: Leadership | None = None
        self._standing: _Standing | None = None
        self._waits_for = "it has not read the log yet"
        self._begun = asyncio.Event()
        self._left: tuple[datetime, int] | None = None

    @property
    def present(self) -> Leadership:
        """Raises `Unavailable` while this instance does not lead, which names the one that does."""
        if self._present is None:
            raise Unavailable(f"this instance does not lead: {self._reason()}", retry_after_seconds=RETRY_SECONDS)
        return self._present

    @property
    def known(self) -> Known:
        """What is known of items here, also while another leads. Raises `Unavailable` before the log was read."""
        if self._present is None and self._standing is None:
            raise Unavailable(f"this instance does not know the log: {self._waits_for}")
        return self._standing or _Present(self.present)

    @property
    def leader(self) -> Leader | None:
        """Who is to be asked instead of us; None while we lead. Raises `Unavailable` while nobody does."""
        if self._present is not None:
            return None
        if self._election.other is None:
            raise Unavailable(f"nobody leads: {self._waits_for}", retry_after_seconds=RETRY_SECONDS)
        return self._election.other

    async def changed(self) -> None:
        """Wait until another leads than now, or we do."""
        await self._election.changed()

    def leads(self) -> bool:
        return self._present is not None

    def stands_by(self) -> str | None:
        """For whom this instance stands by; None while it does not."""
        return None if self._standing is None or self._election.other is None else self._reason()

    def waits_for_lease(self) -> str | None:
        """Why nobody leads for a moment, as seen by an instance that stands by; None when the leader answers."""
        leader = self._election.other
        if self._standing is None or leader is None or not self._election.unanswered:
            return None
        return f"{leader.holder} on {leader.node_id} leads and does not answer; its place is taken when its lease ends"

    def refuse_while_full(self) -> None:
        """Raises `StreamFull` while nothing can be decided: then nothing more is taken in."""
        leader = self._election.other
        problem = leader.problem if self._present is None and leader else self.problem() if self._present else None
        if problem is not None:
            raise StreamFull(problem, retry_after_seconds=FULL_SECONDS)

    def _reason(self) -> str:
        leader = self._election.other
        if leader is None:
            return self._waits_for
        return f"it stands by for {leader.holder} on {leader.node_id}, whose HTTP door is port {leader.port}"

    def _state(self) -> tuple[int, str | None]:
        return (0, None) if self._present is None else (self._present.term.epoch, self.problem())

    async def begun(self) -> None:
        """Wait until this instance leads."""
        await self._begun.wait()

    def problem(self) -> str | None:
        """Why work cannot be taken in and given out now."""
        return self._waits_for if self._present is None else self._present.term.journal.problem

    async def run(self) -> None:
        """Stand by, lead when it is our turn, stand by again, until cancelled."""
        while True:
            leadership: Leadership | None = None
            try:
                leadership = await self._stand_by()
            except* (Unavailable, NotFound, WrongRevision) as group:
                self._waits(_first(group).message)
            finally:
                self._standing = None
                self._meter.became(Role.STARTING)
            if leadership is not None:
                await self._serve(leadership)
            await self._clock.sleep(AGAIN_SECONDS if leadership is None else BETWEEN_SECONDS)

    async def _stand_by(self) -> Leadership:
        """Follow the log until it is our turn; then it is known already, and little is left to read."""
        memory = self._empty_memory()
        following = LogReader(self._bus, WORK_LOG, epochs=EPOCH, records=RECORD, rebuild=memory)
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(following.run()), tasks.create_task(self._let_go(memory))]
            await self._caught_up(following, memory)
            log, origins, log_made = await self._take_over(following)
            await following.up_to(log.fence)
            for task in beside:
                task.cancel()
        self._tell_what_is_lost(log_made)
        memory.enter_streams(origins)
        memory.forget(self._clock.now())
        term = self._term(log, memory, origins, log_made)
        term.journal.checkpoint_wanted = following.since_checkpoint >= self._rules.checkpoint_records
        return self._leadership(term)

    async def _caught_up(self, following: LogReader[WorkRecord], memory: Memory) -> None:
        """Wait until as much is known as was in the log when we came: whoever knows nothing must not lead."""
        self._waits("it reads the log")
        started = self._clock.monotonic()
        origins = await self._origins()
        state = await self._bus.stream_state(WORK_LOG)
        if state.messages:
            with _no_garbage():
                await following.position.reached(state.last_sequence)
        seconds = self._clock.monotonic() - started
        _log.info("log_replayed", records=following.records, open_items=memory.open_items, seconds=round(seconds, 3))
        self._standing = _Standing(memory, following.position, origins)
        self._meter.became(Role.STANDBY)

    async def _let_go(self, memory: Memory) -> None:
        while True:
            await self._clock.sleep(self._rules.upkeep_seconds)
            memory.forget(self._clock.now())
            self.nodes.forget(self._clock.monotonic())

    async def _take_over(self, following: LogReader[WorkRecord]) -> tuple[FencedLog[WorkRecord], Origins, datetime]:
        """Wait for our turn, and fence whoever led. Raises `Unavailable` when the log was made anew meanwhile."""
        while True:
            await self._election.won()
            read = following.position.value
            log = FencedLog(self._bus, WORK_LOG, epochs=EPOCH, records=RECORD, holder=self._new_id(), clock=self._clock)
            try:
                origins = await self._origins()
                log_made = (await self._bus.stream_state(WORK_LOG)).created
                await log.take_over(origins)
            except (Unavailable, NotFound, WrongRevision) as error:
                self._waits(f"taking over the log: {error.message}")
                await self._clock.sleep(AGAIN_SECONDS)
                continue
            if log.fence <= read:
                raise Unavailable(f"the stream {WORK_LOG.name} was made anew")
            return log, origins, log_made

    async def _origins(self) -> Origins:
        return {stream.name: (await self._bus.stream_state(stream)).created for stream in (WORK_IN, WORK_OUT)}

    def _empty_memory(self) -> Memory:
        rules = self._rules
        remembered = RememberedIds(most=rules.remembered_most, keep=timedelta(seconds=rules.remembered_keep_seconds))
        return Memory(remembered, ended_most=rules.ended_most, ended_keep=timedelta(seconds=rules.ended_keep_seconds))

    def _term(self, log: FencedLog[WorkRecord], memory: Memory, origins: Origins, log_made: datetime) -> Term:
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
            log_made=log_made,
            watch=self._watch,
        )

    def _leadership(self, term: Term) -> Leadership:
        payloads, results = Payloads(self._bus), Results(self._bus, self._large)
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
        """Lead until the log says otherwise: another took over, or there are no receipts."""
        leadership.term.resume()
        self._present = leadership
        self._begun.set()
        self._meter.became(Role.LEADER)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(leadership.term.run(), name="term")
                tasks.create_task(self._election.keep(leadership.term.journal.lead), name="lease")
                tasks.create_task(leadership.dispatcher.run(), name="dispatch")
                tasks.create_task(leadership.intake.read_work(), name="read work")
                tasks.create_task(leadership.intake.read_outcomes(), name="read outcomes")
                tasks.create_task(leadership.upkeep.run(), name="upkeep")
                tasks.create_task(self._discover(), name="discover")
                tasks.create_task(self._large.serve(leadership.term.memory), name="objects")
                for companion in self._companions:
                    tasks.create_task(companion(leadership), name="companion")
        except* (SteppedDown, StreamMadeAnew) as group:
            self._waits(_first(group).message)
        finally:
            self._left = (leadership.term.log_made, leadership.term.memory.open_items)
            self._present = None
            self._begun.clear()
            self._meter.became(Role.STARTING)

    def _tell_what_is_lost(self, log_made: datetime) -> None:
        """What was open when we led last is gone with the log that told of it."""
        if self._left is not None and self._left[0] != log_made:
            reason = f"NATS lost the stream {WORK_LOG.name}, and with it what was open"
            _log.error("work_lost", open_items=self._left[1], reason=reason)

    def _waits(self, reason: str) -> None:
        if reason != self._waits_for:
            _log.info("not_leading", reason=reason)
        self._waits_for = reason

    async def _discover(self) -> None:
        """Ask all nodes to tell who they are: their next regular word may be a minute away."""
        try:
            await self._bus.publish(DISCOVER, Discover(asked_by="work_marshaling"))
        except Unavailable as error:
            _log.info("discover_not_told", reason=error.message)


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MeshError)
    return found


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Reading a long log makes objects that all stay: to look for garbage among them again and again takes as long as
    reading them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
