"""Whatever happens in whatever order, an item has one outcome, and the log tells the same as the memory."""

from collections import Counter
from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.common.contracts.log import RecordKind
from libs.common.contracts.work_log import Cancelled, Ended, Fact, WorkRecord
from libs.common.contracts.work_marshaling import AGENT_RESTARTED, WorkError, WorkStatus
from services.work_marshaling.checkpoint import chunks
from services.work_marshaling.machine import decide
from services.work_marshaling.model import (
    Cancel,
    Completed,
    DeadlinePassed,
    Event,
    Failed,
    Given,
    LeaseExpired,
    NodeRefused,
    Progressed,
    RetryDue,
    WorkItem,
)
from services.work_marshaling.store import Memory
from tests.unit.work_marshaling.builders import BROKEN, FINAL, NOW, POLICY, memory, submitted

work = st.integers(0, 1).map(lambda number: f"w{number}")
pick = st.integers(0, 5)


def record(facts: tuple[Fact, ...], kind: RecordKind = RecordKind.FACTS, **fields: object) -> WorkRecord:
    """As it comes back from the disk."""
    told = {"epoch": 1, "n": 1, "at": NOW, "kind": kind, "in_seq": 0, "out_seq": 0, "facts": facts} | fields
    return WorkRecord.model_validate_json(WorkRecord.model_validate(told).model_dump_json())


def state(kept: Memory) -> tuple[object, ...]:
    by_status = {status: count for status, count in kept.by_status.items() if count}
    return kept.items, by_status, dict(kept.totals), kept.open_items, tuple(kept.far_items())


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kept = memory()
        self.log: list[WorkRecord] = []
        self.checkpoint: list[WorkRecord] = []
        self.ends: Counter[str] = Counter()
        self.tokens: list[tuple[str, str]] = [("w0", "never-issued")]
        self.sequence = 0
        self.now = NOW

    def happen(self, work_id: str, event: Event) -> tuple[Fact, ...]:
        self.now += timedelta(seconds=1)
        facts = decide(self.kept.items.get(work_id), event, POLICY, self.now, 0.5)
        for fact in facts:
            self.kept.take(fact)
            if isinstance(fact, Ended | Cancelled):
                self.ends[fact.work_id] += 1
        if facts:
            self.log.append(record(facts))
        return facts

    def any_token(self, number: int) -> tuple[str, str]:
        """Newer tokens more often than older ones."""
        return self.tokens[-1 - number % len(self.tokens)]

    @rule(work_id=work, payload=st.sampled_from(["one", "other"]), own=st.booleans())
    def submit(self, work_id: str, payload: str, own: bool) -> None:
        self.sequence += 1
        self.happen(work_id, submitted(work_id, self.sequence, payload={"text": payload}))

    @rule(work_id=work, number=pick)
    def read_again(self, work_id: str, number: int) -> None:
        known = self.kept.items.get(work_id)
        if known is not None:
            again = self.happen(work_id, submitted(work_id, known.sequence, payload={"text": "one"}))
            assert again == ()

    @rule(work_id=work, node=st.sampled_from(["n1", "n2"]))
    def assign(self, work_id: str, node: str) -> None:
        token = f"t{len(self.tokens)}"
        if self.happen(work_id, Given(node_id=node, token=token)):
            self.tokens.append((work_id, token))

    @rule(number=pick)
    def progress(self, number: int) -> None:
        work_id, token = self.any_token(number)
        self.happen(work_id, Progressed(token=token))

    @rule(number=pick)
    def complete(self, number: int) -> None:
        work_id, token = self.any_token(number)
        before = self.kept.items.get(work_id)
        self.happen(work_id, Completed(work_id=work_id, token=token, out_seq=number + 1, result_bytes=2))
        if before is not None and before.open and before.attempt_with(token) is not None:
            assert self.kept.items[work_id].status is WorkStatus.COMPLETED

    @rule(number=pick, final=st.booleans())
    def fail(self, number: int, final: bool) -> None:
        work_id, token = self.any_token(number)
        self.happen(work_id, Failed(work_id=work_id, token=token, out_seq=number + 1, error=FINAL if final else BROKEN))

    @rule(number=pick, timeout=st.booleans(), died=st.booleans())
    def lose_lease(self, number: int, timeout: bool, died: bool) -> None:
        work_id, token = self.any_token(number)
        self.happen(work_id, LeaseExpired(token=token, timeout=timeout, died=died))

    @rule(number=pick)
    def restart_agent(self, number: int) -> None:
        work_id, token = self.any_token(number)
        error = WorkError(code=AGENT_RESTARTED, message="killed")
        self.happen(work_id, Failed(work_id=work_id, token=token, out_seq=number + 1, error=error))

    @rule(number=pick)
    def be_refused(self, number: int) -> None:
        work_id, token = self.any_token(number)
        self.happen(work_id, NodeRefused(token=token, detail="full"))

    @rule(work_id=work)
    def cancel(self, work_id: str) -> None:
        self.happen(work_id, Cancel(reason="enough"))

    @rule(work_id=work)
    def pass_deadline(self, work_id: str) -> None:
        self.happen(work_id, DeadlinePassed())

    @rule(work_id=work)
    def come_due(self, work_id: str) -> None:
        item = self.kept.items.get(work_id)
        if item is not None and item.retry_at is not None:
            self.happen(work_id, RetryDue(at=item.retry_at))

    def rebuilt(self) -> Memory:
        other = memory()
        if self.checkpoint:
            other.begin_checkpoint()
            for piece in self.checkpoint:
                other.restore(piece)
        for sequence, each in enumerate(self.log, start=1):
            other.apply(each, sequence)
        return other

    @precondition(lambda self: self.log)
    @rule()
    def restart(self) -> None:
        other = self.rebuilt()
        assert state(other) == state(self.kept)
        self.kept = other

    @precondition(lambda self: self.log)
    @rule()
    def write_checkpoint(self) -> None:
        snapshot = self.kept.snapshot()
        parts = [record(piece, RecordKind.CHECKPOINT) for piece in chunks(snapshot)]
        self.checkpoint = [*parts, record((), RecordKind.DONE, totals=dict(snapshot.totals))]
        self.log = []
        self.restart_from_checkpoint()

    def restart_from_checkpoint(self) -> None:
        other = self.rebuilt()
        assert state(other) == state(self.kept)

    @invariant()
    def nobody_ends_twice(self) -> None:
        for work_id, item in self.kept.items.items():
            assert self.ends[work_id] == (0 if item.open else 1)

    @invariant()
    def only_the_newest_attempt_holds_the_lease(self) -> None:
        for item in self.kept.items.values():
            running = [attempt for attempt in item.attempts if attempt.outcome is None]
            assert running == ([item.live] if item.live else [])

    @invariant()
    def no_item_is_tried_too_often(self) -> None:
        assert all(item.counted_attempts <= item.spec.max_attempts for item in self.kept.items.values())

    def teardown(self) -> None:
        """Left to itself, everything open still comes to its end."""
        for item in tuple(self.kept.items.values()):
            self.finish(item)
        assert all(not item.open for item in self.kept.items.values())
        self.nobody_ends_twice()
        assert state(self.rebuilt()) == state(self.kept)

    def finish(self, item: WorkItem) -> None:
        if item.retry_at is not None:
            self.happen(item.work_id, RetryDue(at=item.retry_at))
        self.happen(item.work_id, Given(node_id="n3", token=f"last-{item.work_id}"))
        live = self.kept.items[item.work_id].live
        if live is not None:
            self.happen(item.work_id, Completed(work_id=item.work_id, token=live.token, out_seq=99, result_bytes=0))


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_a_refused_attempt_that_was_done_all_the_same_is_the_same_after_a_checkpoint() -> None:
    state = Life()
    state.submit(own=False, payload="one", work_id="w0")
    state.assign(node="n1", work_id="w0")
    state.be_refused(number=0)
    state.complete(number=0)
    state.write_checkpoint()
    state.teardown()
