"""One leader after another, each dying with decisions that are not on disk: every item still has one counted outcome.

Inputs are read by place, what was decided reaches the disk later and in order, and only what is on disk is done in the
world: offers, stops and what callers are told. A new leader has the disk and nothing else.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.common.contracts.work_log import Assigned, Cancelled, Ended, WorkRecord
from libs.common.contracts.work_marshaling import AGENT_RESTARTED, WorkError, WorkStatus
from services.work_marshaling.leases import Leases
from services.work_marshaling.machine import decide, effects
from services.work_marshaling.model import (
    Cancel,
    Completed,
    Effect,
    Event,
    Failed,
    Given,
    ItemFact,
    LeaseExpired,
    NodeRefused,
    Offer,
    Progressed,
    RetryDue,
    Stop,
    Submitted,
    TellEnd,
    WorkItem,
)
from services.work_marshaling.store import Memory
from tests.unit.work_marshaling.builders import BROKEN, FINAL, NOW, POLICY, memory, submitted
from tests.unit.work_marshaling.test_one_outcome import record

LEASE_SECONDS = 30.0
KILLED = WorkError(code=AGENT_RESTARTED, message="killed")
NODES = ("n1", "n2", "n3")

work = st.integers(0, 1).map(lambda number: f"w{number}")
pick = st.integers(0, 5)


class Leader:
    """What one leader knows, and what it decided that is not on disk yet. It begins by reading the disk."""

    def __init__(self, disk: list[WorkRecord], now: float) -> None:
        self.memory = replayed(disk)
        self.leases = Leases()
        self.unwritten: list[tuple[WorkRecord, list[Effect]]] = []
        for item in self.memory.items.values():
            self._settle(item, now)

    def happen(self, work_id: str, event: Event, now: float) -> None:
        facts = decide(self.memory.items.get(work_id), event, POLICY, calendar(now), 0.5)
        following: list[Effect] = []
        for fact in facts:
            change = self.memory.take(fact)
            if change is not None and isinstance(fact, ItemFact):
                following.extend(effects(change.before, fact))
                self._settle(change.after, now)
        if facts:
            told = record(facts, in_seq=self.memory.in_seq, out_seq=self.memory.out_seq)
            self.unwritten.append((told, following))

    def _settle(self, item: WorkItem, now: float) -> None:
        if item.live is None:
            self.leases.close(item.work_id)
        elif self.leases.ends(item.work_id, item.live.token) is None:
            live = item.live
            self.leases.open(
                item.work_id, live.token, live.node_id, "chat", now=now, seconds=LEASE_SECONDS, most_seconds=600.0
            )

    def live(self) -> Iterator[tuple[str, str]]:
        for item in tuple(self.memory.items.values()):
            if item.live is not None:
                yield item.work_id, item.live.token


@dataclass
class Job:
    """An attempt as its node knows it, from the moment it was accepted."""

    work_id: str
    node_id: str
    running: bool = True
    done: bool = False


@dataclass
class World:
    """Everything outside the leader. It survives all of them."""

    submissions: list[Submitted] = field(default_factory=list)
    outcomes: list[Completed | Failed] = field(default_factory=list)
    disk: list[WorkRecord] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    told: dict[str, tuple[WorkStatus, object]] = field(default_factory=dict)

    def running(self) -> list[str]:
        return [token for token, job in self.jobs.items() if job.running]

    def complete(self, token: str) -> None:
        self.jobs[token].running, self.jobs[token].done = False, True
        work_id, place = self.jobs[token].work_id, len(self.outcomes) + 1
        self.outcomes.append(Completed(work_id=work_id, token=token, out_seq=place, result_bytes=2))

    def fail(self, token: str, error: WorkError) -> None:
        self.jobs[token].running = False
        work_id, place = self.jobs[token].work_id, len(self.outcomes) + 1
        self.outcomes.append(Failed(work_id=work_id, token=token, out_seq=place, error=error))


def calendar(now: float) -> datetime:
    return NOW + timedelta(seconds=now)


def replayed(disk: list[WorkRecord]) -> Memory:
    made = memory()
    for sequence, each in enumerate(disk, start=1):
        made.apply(each, sequence)
    return made


def how_it_ended(item: WorkItem) -> tuple[WorkStatus, object]:
    return item.status, item.out_seq


class Succession(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.now = 0.0
        self.tokens = 0
        self.leader = Leader([], 0.0)

    def happen(self, work_id: str, event: Event) -> None:
        self.leader.happen(work_id, event, self.now)

    # The inputs

    @rule(work_id=work, payload=st.sampled_from(["one", "one", "other"]))
    def submit(self, work_id: str, payload: str) -> None:
        place = len(self.world.submissions) + 1
        self.world.submissions.append(submitted(work_id, place, payload={"text": payload}))

    @precondition(lambda self: self.leader.memory.in_seq < len(self.world.submissions))
    @rule(most=st.integers(1, 3))
    def read_submissions(self, most: int) -> None:
        kept = self.leader.memory
        for told in self.world.submissions[kept.in_seq : kept.in_seq + most]:
            kept.in_seq = told.sequence
            self.happen(told.work_id, told)

    @precondition(lambda self: self.leader.memory.out_seq < len(self.world.outcomes))
    @rule(most=st.integers(1, 3))
    def read_outcomes(self, most: int) -> None:
        kept = self.leader.memory
        for told in self.world.outcomes[kept.out_seq : kept.out_seq + most]:
            kept.out_seq = told.out_seq
            self.happen(told.work_id, told)

    @precondition(lambda self: self.leader.memory.open_items)
    @rule(work_id=work)
    def cancel(self, work_id: str) -> None:
        self.happen(work_id, Cancel(reason="enough"))

    # The leader

    @precondition(lambda self: self.leader.memory.by_status[WorkStatus.PENDING])
    @rule(work_id=work, node_id=st.sampled_from(NODES))
    def assign(self, work_id: str, node_id: str) -> None:
        self.tokens += 1
        self.happen(work_id, Given(node_id=node_id, token=f"t{self.tokens}"))

    @precondition(lambda self: self.leader.unwritten)
    @rule(records=st.integers(1, 4))
    def write(self, records: int) -> None:
        """Some of what was decided is on disk now, and only now it is done."""
        for told, following in self.leader.unwritten[:records]:
            self.world.disk.append(told)
            for effect in following:
                self.do(effect)
        del self.leader.unwritten[:records]

    def do(self, effect: Effect) -> None:
        match effect:
            case Offer():
                self.world.offers.append(effect)
            case Stop(token=token) if token in self.world.jobs:
                self.world.jobs[token].running = False
            case TellEnd(work_id=work_id):
                self.world.told[work_id] = how_it_ended(replayed(self.world.disk).items[work_id])

    @rule(seconds=st.sampled_from([1.0, 11.0, 31.0]), died=st.booleans())
    def pass_time(self, seconds: float, died: bool) -> None:
        self.now += seconds
        for work_id, token in self.leader.live():
            ends = self.leader.leases.ends(work_id, token)
            assert ends is not None
            if ends <= self.now:
                self.happen(work_id, LeaseExpired(token=token, died=died))
        for item in tuple(self.leader.memory.items.values()):
            if item.retry_at is not None and item.retry_at <= calendar(self.now):
                self.happen(item.work_id, RetryDue(at=item.retry_at))

    @precondition(lambda self: self.world.disk)
    @rule()
    def change_leader(self) -> None:
        """What the old one decided and did not write never was, also when it goes on: its writes are refused."""
        self.leader = Leader(self.world.disk, self.now)
        for work_id, token in self.leader.live():
            ends = self.leader.leases.ends(work_id, token)
            assert ends == self.now + LEASE_SECONDS
            item = self.leader.memory.items[work_id]
            if item.status is WorkStatus.ASSIGNED and item.live is not None:
                self.do(Offer(work_id=work_id, node_id=item.live.node_id, token=token, again=True))

    # The nodes

    @precondition(lambda self: self.world.offers)
    @rule(number=pick, accepts=st.sampled_from([True, True, True, False]), repeated=st.booleans())
    def deliver(self, number: int, accepts: bool, repeated: bool) -> None:
        """In any order, perhaps more than once, perhaps long after the leader that sent it is gone."""
        place = number % len(self.world.offers)
        offer = self.world.offers[place]
        if not repeated:
            del self.world.offers[place]
        if offer.token in self.world.jobs:
            return
        if accepts:
            self.world.jobs[offer.token] = Job(offer.work_id, offer.node_id)
        elif not repeated:
            self.happen(offer.work_id, NodeRefused(token=offer.token, detail="full"))

    @precondition(lambda self: self.world.running())
    @rule(number=pick)
    def progress(self, number: int) -> None:
        running = self.world.running()
        token = running[number % len(running)]
        work_id = self.world.jobs[token].work_id
        if self.leader.leases.renew(work_id, token, self.now):
            self.happen(work_id, Progressed(token=token))

    @precondition(lambda self: self.world.running())
    @rule(number=pick, how=st.sampled_from(["well", "well", "broken", "final"]))
    def finish(self, number: int, how: str) -> None:
        running = self.world.running()
        token = running[number % len(running)]
        if how == "well":
            self.world.complete(token)
        else:
            self.world.fail(token, FINAL if how == "final" else BROKEN)

    @precondition(lambda self: self.world.outcomes)
    @rule(number=pick)
    def repeat_outcome(self, number: int) -> None:
        told = self.world.outcomes[number % len(self.world.outcomes)]
        self.world.outcomes.append(replace(told, out_seq=len(self.world.outcomes) + 1))

    @precondition(lambda self: self.world.running())
    @rule(node_id=st.sampled_from(NODES), tells=st.booleans())
    def kill_node(self, node_id: str, tells: bool) -> None:
        for token in self.world.running():
            if self.world.jobs[token].node_id == node_id:
                self.world.jobs[token].running = False
                if tells:
                    self.world.fail(token, KILLED)

    # What must hold

    @invariant()
    def nothing_ends_twice_on_disk(self) -> None:
        assert all(count == 1 for count in self.ends().values())

    @invariant()
    def what_was_told_stays_so(self) -> None:
        kept = replayed(self.world.disk).items
        for work_id, told in self.world.told.items():
            assert how_it_ended(kept[work_id]) == told

    @invariant()
    def nothing_runs_that_is_not_on_disk(self) -> None:
        known = {fact.token for each in self.world.disk for fact in each.facts if isinstance(fact, Assigned)}
        assert self.world.jobs.keys() <= known

    def ends(self) -> Counter[str]:
        facts = (fact for each in self.world.disk for fact in each.facts)
        return Counter(fact.work_id for fact in facts if isinstance(fact, Ended | Cancelled))

    def teardown(self) -> None:
        """Left to itself, everything that was submitted comes to its one end, and a completed item was really done."""
        self.come_to_an_end()
        self.outcomes_come_again_to_another_leader()
        self.nothing_ends_twice_on_disk()
        for item in replayed(self.world.disk).items.values():
            if item.status is WorkStatus.COMPLETED:
                (counted,) = [each for each in item.attempts if each.outcome == "completed"]
                assert self.world.jobs[counted.token].done

    def outcomes_come_again_to_another_leader(self) -> None:
        for number in range(len(self.world.outcomes)):
            self.repeat_outcome(number)
        self.change_leader()
        self.submit("another", "one")
        self.come_to_an_end()
        self.what_was_told_stays_so()

    def come_to_an_end(self) -> None:
        for _ in range(60):
            if not self.over():
                self.settle()
        assert self.over()

    def over(self) -> bool:
        return self.ends().keys() >= {told.work_id for told in self.world.submissions} and not self.leader.unwritten

    def settle(self) -> None:
        self.read_submissions(most=len(self.world.submissions) + 1)
        self.read_outcomes(most=len(self.world.outcomes) + 1)
        for work_id in tuple(self.leader.memory.items):
            self.assign(work_id, NODES[self.tokens % len(NODES)])
        self.write(len(self.leader.unwritten))
        while self.world.offers:
            self.deliver(0, accepts=True, repeated=False)
        for token in self.world.running():
            self.world.complete(token)
        self.read_outcomes(most=len(self.world.outcomes) + 1)
        self.pass_time(LEASE_SECONDS + 1, died=False)
        self.write(len(self.leader.unwritten))


Succession.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSuccession = Succession.TestCase
