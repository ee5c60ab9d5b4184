"""One leadership: decides what happens to items, keeps it in the log, and does what follows once it is on disk.

Memory is ahead of the log by what is on its way. Whatever leaves this process (assignments, ends that are told) waits
for the log; after a restart it is derived anew from what the log says.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.work_log import Blacklisted, Fact, ItemFact, Paroled, WorkRecord
from libs.common.contracts.work_marshaling import EXTERNAL, WorkStatus
from libs.common.errors import Unavailable
from libs.common.log.fenced_log import FencedLog
from services.work_marshaling.conduct import Conduct
from services.work_marshaling.explaining import Possible
from services.work_marshaling.journal import Journal
from services.work_marshaling.leases import Leases
from services.work_marshaling.machine import decide, effects, longest_retry_delay
from services.work_marshaling.matching import company, promise, wanted
from services.work_marshaling.meter import Meter
from services.work_marshaling.model import (
    Changed,
    DeadlinePassed,
    Effect,
    Event,
    Given,
    LeaseExpired,
    Offer,
    PayloadLost,
    Progressed,
    RetryDue,
    Rules,
    TellEnd,
    WorkItem,
)
from services.work_marshaling.nodes import Distrust, Nodes
from services.work_marshaling.scheduler import Queue
from services.work_marshaling.store import Memory
from services.work_marshaling.timers import Due, Timer, Timers

TICK_SECONDS = 0.1
STALLED_MOST_SECONDS = 5.0
MOST_PER_TURN = 500
MOST_UNWRITTEN = 20_000

_log = structlog.get_logger()


class Watch(Protocol):
    """Items that are followed, and who is told of them."""

    def __contains__(self, work_id: str) -> bool: ...
    def changed(self, item: WorkItem) -> None: ...


class Outbox(Protocol):
    """Where assignments and stops go."""

    def do(self, effect: Effect) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """Where randomness comes from: a number in [0, 1), and tokens that nobody can guess."""

    number: Callable[[], float]
    token: Callable[[], str]


class Term:
    """Built after the log was taken over and replayed into `memory`."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        log: FencedLog[WorkRecord],
        memory: Memory,
        nodes: Nodes,
        rules: Rules,
        chances: Chances,
        meter: Meter,
        origins: Mapping[str, datetime],
        log_made: datetime,
        watch: Watch,
    ) -> None:
        self.log_made = log_made
        self.memory = memory
        self.nodes = nodes
        self.queue = Queue(ageing_seconds=rules.ageing_seconds, poison_nodes=rules.policy.poison_nodes)
        self.leases = Leases()
        self.possible = Possible(nodes)
        self.conduct = Conduct(rules.conduct)
        self.rules = rules
        self.origins = origins
        self.journal = Journal(
            log=log, memory=memory, clock=clock, rules=rules, meter=meter, origins=origins, follow=self._do
        )
        self.outbox: Outbox | None = None
        self._watch = watch
        self._bus = bus
        self._clock = clock
        self._chances = chances
        self.meter = meter
        self._timers = Timers()
        self._wake = asyncio.Event()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._connections = bus.connections
        self._last_tick = clock.monotonic()
        self._began_at = clock.now().timestamp() - clock.monotonic()
        self._seen_version = -1

    @property
    def epoch(self) -> int:
        return self.journal.epoch

    def unsatisfiable(self, item: WorkItem) -> str | None:
        """Why no node that is known could ever run a pending item."""
        if item.status is not WorkStatus.PENDING:
            return None
        return self.possible.why_not(wanted(item, self.rules.policy.poison_nodes))

    # What happens

    def happen(self, work_id: str, event: Event) -> tuple[Fact, ...]:
        """Decide what follows from an event, keep it in memory and hand it to the log."""
        now = self._clock.now()
        facts = decide(self.memory.items.get(work_id), event, self.rules.policy, now, self._chances.number())
        self.keep(facts)
        return facts

    def keep(self, facts: tuple[Fact, ...]) -> None:
        """Apply what was decided, and hand it to the log."""
        if not facts:
            return
        first: dict[str, WorkItem | None] = {}
        following: list[Effect] = []
        for fact in facts:
            change = self.memory.take(fact)
            if change is not None:
                self._judge(change.before, change.fact)
                first.setdefault(change.after.work_id, change.before)
                following.extend(effects(change.before, change.fact))
            elif fact.fact == "blacklisted" or fact.fact == "paroled":
                self._distrust(fact)
        for work_id, before in first.items():
            self._settle(before, self.memory.items[work_id])
            if work_id in self._watch:
                following.append(Changed(item=self.memory.items[work_id]))
        self.journal.add(facts, tuple(first), tuple(following))

    def _judge(self, before: WorkItem | None, fact: ItemFact) -> None:
        """What the end of an attempt says about a node counts for how much work it gets."""
        match fact.fact:
            case "ended" | "attempt_failed" | "expired" if before is not None:
                live = before.live
                slots = 0 if live is None else sum(pool.slots for pool in self.nodes[live.node_id].pools)
                node_id = self.conduct.hear(before, fact, max(1, slots))
                if node_id is not None:
                    self.leases.limit(node_id, self.conduct.quota(node_id))

    def _distrust(self, fact: Blacklisted | Paroled) -> None:
        found = None
        if isinstance(fact, Blacklisted):
            found = Distrust(model_name=fact.model_name, reason=fact.reason, failure_rate=fact.failure_rate or 1.0)
        self.nodes.distrust(fact.node_id, fact.model_name, found)
        if fact.model_name is None:
            self.conduct.limit(fact.node_id)
            self.leases.limit(fact.node_id, 1)
        self._wake.set()

    def resume(self) -> None:
        """After the replay: every open item takes its place again, every live lease gets a full term."""
        self.nodes.trust_all()
        for fact in self.memory.conduct.values():
            if isinstance(fact, Blacklisted):
                self._distrust(fact)
        for work_id in tuple(self.memory.orphans):
            self.happen(work_id, PayloadLost())
        for item in tuple(self.memory.items.values()):
            if item.open:
                self._settle(None, item)
                if item.status is WorkStatus.ASSIGNED and item.live is not None and self.outbox is not None:
                    live = item.live
                    self.outbox.do(Offer(work_id=item.work_id, node_id=live.node_id, token=live.token, again=True))

    def _settle(self, before: WorkItem | None, after: WorkItem) -> None:
        """Queue, leases and timers follow the item."""
        now = self._clock.monotonic()
        work_id = after.work_id
        live = after.live
        if before is not None and before.live is not None and (live is None or live.token != before.live.token):
            self.leases.close(work_id)
            self._wake.set()
        if live is not None and work_id not in self.leases:
            self._open_lease(after, now)
        if after.status is not WorkStatus.PENDING:
            self.queue.remove(work_id)
        elif after.spec.not_before is None or after.spec.not_before <= self._clock.now():
            self.queue.add(after)
            self._wake.set()
        else:
            self._at(after.spec.not_before, Timer(Due.NOT_BEFORE, work_id))
        if after.retry_at is not None:
            most = longest_retry_delay(after, self.rules.policy)
            self._at(after.retry_at, Timer(Due.RETRY, work_id, at=after.retry_at), most_seconds=most)
        if before is None and after.spec.deadline is not None:
            self._at(after.spec.deadline, Timer(Due.DEADLINE, work_id))

    def _open_lease(self, item: WorkItem, now: float) -> None:
        live = item.live
        assert live is not None
        term = self.rules.lease_seconds
        timeout = item.spec.timeout_seconds
        seconds = timeout if item.spec.external else term
        agent = self.nodes[live.node_id].agent
        lease = self.leases.open(
            item.work_id,
            live.token,
            live.node_id,
            item.spec.work_type,
            now=now,
            seconds=seconds,
            most_seconds=timeout + term,
            memory=promise(item.spec.requirements),
            boot_id=agent.boot_id if agent is not None else None,
            company=company(item, self.rules.policy.poison_nodes),
        )
        self._timers.add(lease.until, Timer(Due.LEASE, item.work_id, live.token))

    def _at(self, moment: datetime, timer: Timer, *, most_seconds: float = math.inf) -> None:
        """The calendar is asked once, when the timer is set: later jumps of it move nothing.

        `most_seconds` bounds the wait for a moment that an earlier leader chose: its calendar may have been another.
        """
        wait = (moment - self._clock.now()).total_seconds()
        self._timers.add(self._clock.monotonic() + min(max(0.0, wait), most_seconds), timer)

    def hear_progress(self, work_id: str, token: str) -> bool:
        """Renew the lease. False when this token does not hold the item."""
        if not self.leases.renew(work_id, token, self._clock.monotonic()):
            return False
        if self.memory.items[work_id].status is WorkStatus.ASSIGNED:
            self.happen(work_id, Progressed(token=token))
        return True

    # Waiting

    async def ended(self, work_id: str) -> None:
        """Wait until the item's end is on disk. Cancel it to wait no longer."""
        item = self.memory.items.get(work_id)
        if item is None or (not item.open and not self.journal.unconfirmed(work_id)):
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(work_id, []).append(told)
        try:
            await told
        finally:
            waiting = self._waiting.get(work_id, [])
            with suppress(ValueError):
                waiting.remove(told)
            if not waiting:
                self._waiting.pop(work_id, None)

    async def room(self) -> None:
        """Wait while more is on its way to the log than is good."""
        await self.journal.flushed(but=MOST_UNWRITTEN)

    def forget_nodes(self) -> None:
        """Those that are gone for long."""
        for node_id in self.nodes.forget(self._clock.monotonic()):
            self.conduct.forget(node_id)
            self.leases.forget(node_id)

    # Loops

    async def run(self) -> None:
        """Schedule, watch the time and write the log, until the leadership ends: raises `SteppedDown`."""
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self.journal.run(), name="log")
                loops.create_task(self._schedule(), name="schedule")
                loops.create_task(self._watch_time(), name="timers")
        finally:
            for told in (told for waiting in self._waiting.values() for told in waiting):
                if not told.done():
                    told.set_exception(Unavailable("this instance no longer leads; ask again"))

    def wake(self) -> None:
        """Something changed that may let an item run."""
        self._wake.set()

    async def _schedule(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.room()
            now = self._clock.now()
            choices = self.queue.choose(
                self.nodes,
                self.leases.free(self.nodes),
                now=self.calendar(),
                most=MOST_PER_TURN,
                aboard=self.leases.aboard,
                trouble=self.conduct.trouble,
                slowness=lambda kind: self.conduct.paces.slowness(kind, self.calendar()),
            )
            for choice in choices:
                token = self.nodes.token_for(choice.node_id, self._chances.token())
                self.happen(choice.work_id, Given(node_id=choice.node_id, token=token, despite=choice.despite))
                self.meter.assigned((now - self.memory.items[choice.work_id].submitted_at).total_seconds())
            if len(choices) == MOST_PER_TURN:
                self._wake.set()
            await asyncio.sleep(0)

    def calendar(self) -> float:
        """Seconds since 1970, without the jumps that the calendar made since this term began."""
        return self._began_at + self._clock.monotonic()

    async def _watch_time(self) -> None:
        while True:
            self._notice_outage()
            now = self._clock.monotonic()
            self.nodes.pass_time(now)
            if self.nodes.version != self._seen_version:
                self._seen_version = self.nodes.version
                self._wake.set()
            for timer in self._timers.pop_due(now):
                self._fire(timer, now)
            if len(self._timers) > 4 * self.memory.open_items + 10_000:
                self._timers.keep(self._wanted)
            await self._clock.sleep(TICK_SECONDS)

    def _notice_outage(self) -> None:
        """Silence while we were cut off, or stood still ourselves, is nobody's fault."""
        now = self._clock.monotonic()
        # A node that renews every third of a lease is never due within two thirds of it.
        stalled = now - self._last_tick > min(STALLED_MOST_SECONDS, self.rules.lease_seconds / 3)
        self._last_tick = now
        if stalled or self._bus.problem() is not None or self._bus.connections != self._connections:
            self._connections = self._bus.connections
            self.leases.deaf_until(now, self.rules.lease_seconds)

    def _wanted(self, timer: Timer) -> bool:
        item = self.memory.items.get(timer.work_id)
        if item is None or not item.open:
            return False
        return timer.kind is not Due.LEASE or self.leases.ends(timer.work_id, timer.token) is not None

    def _fire(self, timer: Timer, now: float) -> None:
        work_id = timer.work_id
        if timer.kind is Due.LEASE:
            self._lease_due(timer, now)
        elif timer.kind is Due.RETRY and timer.at is not None:
            self.happen(work_id, RetryDue(at=timer.at))
        elif timer.kind is Due.DEADLINE:
            self.happen(work_id, DeadlinePassed())
        elif timer.kind is Due.NOT_BEFORE:
            item = self.memory.items.get(work_id)
            if item is not None and item.status is WorkStatus.PENDING:
                self.queue.add(item)
                self._wake.set()

    def _lease_due(self, timer: Timer, now: float) -> None:
        ends = self.leases.ends(timer.work_id, timer.token)
        if ends is None:
            return
        if ends > now:
            self._timers.add(ends, timer)
            return
        timeout = self.leases.took_too_long(timer.work_id, now)
        live = self.memory.items[timer.work_id].live
        external = live is None or live.node_id == EXTERNAL
        if live is not None and not external and not timeout:
            _log.warning("lease_expired", work_id=timer.work_id, node_id=live.node_id)
            # It should have renewed at a third: one that stands still was not heard for two at least.
            self.nodes.unheard(live.node_id, now, self.rules.lease_seconds / 2)
        self.meter.lease_expired()
        died = not external and self.leases.node_died(timer.work_id, self.nodes, now, self.rules.node_silence_seconds)
        self.happen(timer.work_id, LeaseExpired(token=timer.token, timeout=timeout, died=died))

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, TellEnd):
            for told in self._waiting.get(effect.work_id, ()):
                if not told.done():
                    told.set_result(None)
        elif isinstance(effect, Changed):
            self._watch.changed(effect.item)
        elif self.outbox is not None:
            self.outbox.do(effect)
