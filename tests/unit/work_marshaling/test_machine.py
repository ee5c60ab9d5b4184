"""What is decided about an item, case by case."""

from dataclasses import replace
from datetime import datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from libs.common.contracts.work_log import (
    AttemptFailed,
    Ended,
    Expired,
    Fact,
    Ignored,
    IgnoredReason,
    Refused,
    Repeated,
    RetryAt,
)
from libs.common.contracts.work_marshaling import WorkStatus
from services.work_marshaling.facts import apply
from services.work_marshaling.machine import decide, effects, retry_delay
from services.work_marshaling.model import (
    Cancel,
    Completed,
    Event,
    Failed,
    Given,
    LeaseExpired,
    NodeRefused,
    Offer,
    Progressed,
    RetryDue,
    Stop,
    TellEnd,
    WorkItem,
)
from tests.unit.work_marshaling.builders import BROKEN, FINAL, NOW, POLICY, submitted


class Story:
    """One item and what happens to it."""

    def __init__(self, **fields: object) -> None:
        self.item: WorkItem | None = None
        self.told: list[object] = []
        self.tell(submitted("w", 1, **fields))

    def tell(self, event: Event, chance: float = 0.5) -> tuple[Fact, ...]:
        facts = decide(self.item, event, POLICY, NOW, chance)
        for fact in facts:
            if not isinstance(fact, Repeated | Refused | Ignored):
                self.told.extend(effects(self.item, fact))
                self.item = apply(self.item, fact)
        return facts

    def assign(self, token: str = "t1", node_id: str = "n1") -> "Story":
        self.tell(Given(node_id=node_id, token=token))
        return self

    @property
    def status(self) -> WorkStatus:
        assert self.item is not None
        return self.item.status


def completed(token: str | None) -> Completed:
    return Completed(work_id="w", token=token, out_seq=7, result_bytes=3)


def failed(token: str | None, final: bool = False) -> Failed:
    return Failed(work_id="w", token=token, out_seq=7, error=FINAL if final else BROKEN)


def test_a_submitted_item_is_pending():
    assert Story().status is WorkStatus.PENDING


def test_the_same_submission_again_is_the_same_item():
    assert isinstance(Story().tell(submitted("w", 2))[0], Repeated)


def test_the_same_id_with_other_content_is_refused():
    (fact,) = Story().tell(submitted("w", 2, payload={"prompt": "other"}))

    assert isinstance(fact, Refused)
    assert fact.code == "conflict"


def test_an_assigned_item_is_offered_to_its_node():
    assert Story().assign().told == [Offer(work_id="w", node_id="n1", token="t1")]


def test_an_item_that_is_assigned_already_is_not_assigned_again():
    assert Story().assign().tell(Given(node_id="n2", token="t2")) == ()


def test_the_first_progress_means_running():
    story = Story().assign()
    story.tell(Progressed(token="t1"))

    assert story.status is WorkStatus.RUNNING
    assert story.tell(Progressed(token="t1")) == ()


def test_a_completion_ends_the_item():
    story = Story().assign()
    story.tell(completed("t1"))

    assert story.status is WorkStatus.COMPLETED
    assert story.told[-1] == TellEnd(work_id="w")


def test_an_outcome_that_is_read_again_after_a_restart_is_none_that_came_late():
    story = Story().assign()
    (ended,) = story.tell(completed("t1"))
    assert isinstance(ended, Ended)

    assert story.tell(completed("t1")) == ()


def test_a_completion_after_the_lease_expired_still_ends_the_item():
    story = Story().assign()
    story.tell(LeaseExpired(token="t1"))
    story.tell(completed("t1"))

    assert story.status is WorkStatus.COMPLETED


def test_a_completion_by_an_older_attempt_stops_the_newer_one():
    story = Story().assign()
    story.tell(LeaseExpired(token="t1"))
    assert story.item is not None
    assert story.item.retry_at is not None
    story.tell(RetryDue(at=story.item.retry_at))
    story.assign("t2", "n2")
    story.tell(completed("t1"))

    assert Stop(node_id="n2", token="t2", reason="ended otherwise") in story.told


def test_a_second_completion_counts_nothing():
    story = Story().assign()
    story.tell(completed("t1"))
    (fact,) = story.tell(replace(completed("t1"), out_seq=100))

    assert isinstance(fact, Ignored)
    assert fact.reason is IgnoredReason.LATE


@pytest.mark.parametrize(
    ("token", "reason"), [(None, IgnoredReason.NO_TOKEN), ("guessed", IgnoredReason.UNKNOWN_TOKEN)]
)
def test_a_stranger_cannot_complete_somebodys_work(token: str | None, reason: IgnoredReason):
    story = Story().assign()
    (fact,) = story.tell(completed(token))

    assert isinstance(fact, Ignored)
    assert fact.reason is reason
    assert story.status is WorkStatus.ASSIGNED


def test_an_outside_worker_needs_no_token():
    story = Story(requirements={"node_ids": ["external"]}).assign(node_id="external")
    story.tell(completed(None))

    assert story.status is WorkStatus.COMPLETED


def test_an_external_item_that_was_given_to_nobody_cannot_be_completed():
    (fact,) = Story(requirements={"node_ids": ["external"]}).tell(completed(None))

    assert isinstance(fact, Ignored)


def test_a_failure_is_tried_again_later():
    story = Story().assign()
    facts = story.tell(failed("t1"), chance=0.5)

    assert [type(fact) for fact in facts] == [AttemptFailed, RetryAt]
    assert story.status is WorkStatus.RETRYING
    assert story.item is not None
    assert story.item.retry_at == NOW + timedelta(seconds=2.5)


def test_a_failure_of_an_expired_attempt_counts_nothing():
    story = Story().assign()
    story.tell(LeaseExpired(token="t1"))
    (fact,) = story.tell(failed("t1"))

    assert isinstance(fact, Ignored)
    assert story.status is WorkStatus.RETRYING


def test_a_final_error_ends_the_item_at_once():
    story = Story().assign()
    story.tell(failed("t1", final=True))

    assert story.status is WorkStatus.FAILED


def test_an_item_whose_attempts_are_exhausted_is_dead():
    story = Story(max_attempts=1).assign()
    story.tell(failed("t1"))

    assert story.status is WorkStatus.DEAD
    assert story.item is not None
    assert story.item.error == BROKEN


def test_retries_are_counted_on_top_of_the_first_attempt():
    story = Story()
    assert story.item is not None
    assert story.item.spec.max_attempts == POLICY.retry_max + 1


def test_a_refused_attempt_does_not_count():
    story = Story(max_attempts=1).assign()
    (fact,) = story.tell(NodeRefused(token="t1", detail="full"))

    assert isinstance(fact, Expired)
    assert story.status is WorkStatus.PENDING
    assert story.item is not None
    assert story.item.counted_attempts == 0


def test_an_item_that_is_refused_for_ever_does_not_grow_for_ever():
    story = Story()
    for number in range(100):
        story.assign(f"t{number}").tell(NodeRefused(token=f"t{number}", detail="full"))

    assert story.item is not None
    assert len(story.item.attempts) <= 33


def test_cancelling_stops_the_attempt():
    story = Story().assign()
    story.tell(Cancel(reason="enough"))

    assert story.status is WorkStatus.CANCELLED
    assert Stop(node_id="n1", token="t1", reason="cancelled") in story.told


def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again():
    story = Story().assign()
    story.tell(LeaseExpired(token="t1", timeout=True))

    assert story.status is WorkStatus.RETRYING
    assert isinstance(story.told[-1], Stop)


def test_the_delay_doubles_up_to_its_limit():
    assert [retry_delay(5.0, tried, POLICY, 1.0) for tried in (1, 2, 3, 100)] == [5.0, 10.0, 20.0, 3600.0]


def test_nothing_happens_to_an_item_that_ended():
    story = Story().assign()
    story.tell(completed("t1"))
    events: list[Event] = [Cancel(), LeaseExpired(token="t1"), Given(node_id="n", token="t"), Progressed(token="t1")]

    assert [story.tell(event) for event in events] == [()] * 4


def test_a_failure_that_ends_an_item_names_its_attempt():
    story = Story(max_attempts=1).assign()
    facts = story.tell(failed("t1"))

    assert isinstance(facts[-1], Ended)
    assert facts[-1].attempt == 1


def test_an_attempt_that_was_never_reported_began_when_its_outcome_says():
    story = Story().assign()
    story.tell(Completed(work_id="w", token="t1", out_seq=7, result_bytes=3, started_at=NOW))

    assert story.item is not None
    assert story.item.attempts[0].started_at == NOW


@pytest.mark.parametrize("told", [NOW - timedelta(hours=1), NOW + timedelta(hours=1)])
def test_a_workers_clock_that_is_wrong_cannot_put_a_start_outside_of_its_attempt(told: datetime):
    story = Story().assign()
    story.tell(Failed(work_id="w", token="t1", out_seq=7, error=BROKEN, started_at=told))

    assert story.item is not None
    assert story.item.attempts[0].started_at == NOW


def test_a_start_that_was_reported_stays():
    story = Story().assign()
    story.tell(Progressed(token="t1"))
    story.tell(Completed(work_id="w", token="t1", out_seq=7, result_bytes=3, started_at=None))

    assert story.item is not None
    assert story.item.attempts[0].started_at == NOW


@given(st.floats(0, 86400), st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_a_retry_is_put_off_by_anything_up_to_twice_as_long_each_time(base: float, tried: int, chance: float):
    most = retry_delay(base, tried, POLICY, 1.0)

    assert 0 <= retry_delay(base, tried, POLICY, chance) <= most <= POLICY.retry_delay_most_seconds
    assert most == min(POLICY.retry_delay_most_seconds, base * 2.0 ** (tried - 1))
    assert retry_delay(base, tried, POLICY, chance) == pytest.approx(chance * most)


@given(st.lists(st.sampled_from(["passing", "final", "lease", "died", "refused"]), min_size=1, max_size=30))
def test_an_item_ends_with_its_first_final_error_or_its_last_attempt(ends: list[str]):
    story = Story(max_attempts=3)
    counted, over = 0, None
    for number, end in enumerate(ends):
        assert story.item is not None
        if over is not None or (end == "died" and story.item.deaths == POLICY.deaths_most - 1):
            break
        token = f"t{number}"
        story.assign(token)
        events: dict[str, Event] = {
            "passing": failed(token),
            "final": failed(token, final=True),
            "lease": LeaseExpired(token=token),
            "died": LeaseExpired(token=token, died=True),
            "refused": NodeRefused(token=token, detail="full"),
        }
        story.tell(events[end])
        counted += end in ("passing", "final", "lease")
        over = WorkStatus.FAILED if end == "final" else WorkStatus.DEAD if counted == 3 else None
        if story.item is not None and story.item.retry_at is not None:
            story.tell(RetryDue(at=story.item.retry_at))

    assert story.status is (over or WorkStatus.PENDING)
