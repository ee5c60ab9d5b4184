"""Who is next: nothing starves, and nobody who submits much keeps others waiting."""

from collections import Counter
from datetime import timedelta
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from services.work_marshaling.model import WorkItem
from services.work_marshaling.scheduler import Queue
from services.work_marshaling.slots import SlotPool, Slots
from tests.unit.work_marshaling.builders import NOW, engine, workload
from tests.unit.work_marshaling.test_scheduling import AGEING, item, nodes, queue_of

START = NOW.timestamp()
KNOWN = nodes(workload(engines=(engine("a"), engine("b"))))


def takes(queue: Queue, count: int = 1, now: float = START) -> list[str]:
    free = {"n1": Slots([SlotPool(frozenset({"chat"}), count)])}
    return [choice.work_id for choice in queue.choose(KNOWN, free, now=now, most=count)]


def submitted_later(each: WorkItem, seconds: float) -> WorkItem:
    return each._replace(submitted_at=NOW + timedelta(seconds=seconds))


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0, 12 * AGEING))
def test_an_item_counts_one_priority_better_for_every_so_many_seconds_it_waited(old: int, new: int, waited: float):
    queue = queue_of(
        item("old", 1, priority=old, submitter="a"),
        submitted_later(item("new", 2, priority=new, submitter="b"), waited),
    )

    level = max(0, old - int(waited / AGEING))
    assert takes(queue, now=START + waited) == ["old" if level <= new else "new"]


def test_an_item_of_the_lowest_priority_is_done_although_better_ones_never_end():
    queue = queue_of(item("patient", 1, priority=9, submitter="a"))
    for second in range(1, int(10 * AGEING)):
        queue.add(submitted_later(item(f"w{second}", 2 * second, priority=0, submitter="b"), second))
        queue.add(submitted_later(item(f"x{second}", 2 * second + 1, priority=0, submitter="b"), second))
        if "patient" in takes(queue, now=START + second):
            break

    assert 9 * AGEING <= second <= 9 * AGEING + 2


def test_waiting_is_counted_from_when_an_item_may_run():
    later = item("later", 1, priority=1, not_before=(NOW + timedelta(seconds=5 * AGEING)).isoformat())
    queue = queue_of(later, submitted_later(item("fresh", 2, priority=0), 5 * AGEING))

    assert takes(queue, now=START + 5.5 * AGEING) == ["fresh"]


def test_one_who_submits_ten_thousand_items_does_not_delay_the_one_of_another():
    queue = queue_of(*(item(f"w{number}", number, submitter="many") for number in range(1, 10_001)))
    takes(queue, 100)
    queue.add(item("single", 20_000, submitter="one"))

    assert "single" in takes(queue, 2)


def test_the_items_of_one_submitter_go_in_the_order_of_submission_whatever_they_ask_for():
    models = [None, "a", "b"]
    queue = queue_of(*(item(f"w{number}", number, model_name=models[number % 3]) for number in range(1, 20)))

    assert takes(queue, 19) == [f"w{number}" for number in range(1, 20)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, "a", "b"])), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_submitters_who_have_something_waiting_get_the_same_number_of_turns(
    asked: list[tuple[str, str | None]], turns: list[int]
):
    items = {
        f"w{number}": item(f"w{number}", number, submitter=who, model_name=model)
        for number, (who, model) in enumerate(asked, start=1)
    }
    queue = queue_of(*items.values())
    waiting = Counter(who for who, _ in asked)
    served: Counter[str] = Counter()
    for count in turns:
        for work_id in takes(queue, count):
            submitter = str(items[work_id].spec.submitter)
            served[submitter] += 1
            waiting[submitter] -= 1
            for other in (name for name, left in waiting.items() if left > 0):
                assert served[submitter] <= served[other] + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["one", "take"]), min_size=10, max_size=80))
def test_who_sends_one_at_a_time_cannot_push_aside_who_waits(steps: list[str]):
    queue = queue_of(*(item(f"w{number}", number, submitter="many") for number in range(1, 100)))
    taken: list[str] = []
    for number, step in enumerate(steps):
        queue.add(item(f"one{number}", 1000 + number, submitter="one"))
        if step == "take":
            taken += takes(queue)

    ones = [number for number, work_id in enumerate(taken) if work_id.startswith("one")]
    assert all(later - earlier >= 2 for earlier, later in pairwise(ones))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000), st.sampled_from("abc")), min_size=1, max_size=40),
    st.data(),
)
def test_whoever_is_taken_nobody_of_a_better_level_waits(asked: list[tuple[int, int, str]], data: st.DataObject):
    items = {
        f"w{number}": submitted_later(item(f"w{number}", number, priority=priority, submitter=who), waited)
        for number, (priority, waited, who) in enumerate(asked, start=1)
    }
    queue = queue_of(*items.values())
    now = START
    while items:
        now += data.draw(st.sampled_from([0.0, 1.0, 200.0]))
        (taken,) = takes(queue, now=now)

        def level(each: WorkItem, now: float = now) -> int:
            waited = max(0.0, now - each.submitted_at.timestamp())
            return max(0, each.spec.priority - int(waited / AGEING))

        chosen = level(items.pop(taken))
        assert all(chosen <= level(each) for each in items.values())
