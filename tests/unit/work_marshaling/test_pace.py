"""Which nodes are slow is learned from their attempts, and slow ones come after quick ones."""

import hypothesis.strategies as st
from hypothesis import given

from services.work_marshaling.matching import rank
from services.work_marshaling.pace import ENOUGH, KEPT_SECONDS, LEAST_SECONDS, Paces
from tests.unit.work_marshaling.builders import NOW
from tests.unit.work_marshaling.house import workload
from tests.unit.work_marshaling.test_scheduling import chosen_by_pace, item, nodes, queue_of, wanted

KIND = ("chat", None)
seconds = st.floats(LEAST_SECONDS, 1000.0)
paces = st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), seconds, min_size=2)


def steady(taken: dict[str, float], times: int = ENOUGH) -> Paces:
    known = Paces()
    for node_id, each in taken.items():
        for number in range(times):
            known.took(node_id, KIND, each, float(number))
    return known


@given(paces)
def test_who_takes_twice_as_long_is_one_slower_and_the_quickest_is_not_slow(taken: dict[str, float]):
    told = steady(taken).slowness(KIND, 10.0)
    quickest = min(taken.values())

    assert min(told.values()) == 0
    for node_id, slowness in told.items():
        ratio = taken[node_id] / quickest
        assert 2.0**slowness <= ratio * 1.001
        assert slowness == 9 or ratio < 2.0 ** (slowness + 1) * 1.001


@given(paces, st.floats(1.0, 100.0))
def test_how_long_the_work_is_says_nothing_about_who_is_slow(taken: dict[str, float], longer: float):
    one, other = (steady(each).slowness(KIND, 10.0) for each in (taken, {n: s * longer for n, s in taken.items()}))

    assert all(abs(one[node_id] - other[node_id]) <= 1 for node_id in taken)  # it may lie on the border
    assert [n for n in taken if taken[n] < 1.9 * min(taken.values()) and (one[n] or other[n])] == []


@given(st.lists(seconds, min_size=ENOUGH, max_size=50), st.lists(seconds, min_size=ENOUGH, max_size=50))
def test_who_was_never_quicker_than_another_is_not_taken_for_quicker(first: list[float], second: list[float]):
    known = Paces()
    for number, each in enumerate(first):
        known.took("n1", KIND, each, float(number))
    for number, each in enumerate(second):
        known.took("n2", KIND, each, float(number))
    told = known.slowness(KIND, 60.0)

    if max(first) <= min(second):
        assert told["n1"] == 0 <= told["n2"]


def test_a_few_attempts_or_old_ones_or_another_kind_of_work_say_nothing():
    assert steady({"n1": 1.0, "n2": 100.0}, ENOUGH - 1).slowness(KIND, 10.0) == {}
    known = steady({"n1": 1.0, "n2": 100.0})
    assert known.slowness(("chat", "a-model"), 10.0) == {}
    assert known.slowness(KIND, 10.0) == {"n1": 0, "n2": 6}
    assert known.slowness(KIND, 11.0 + KEPT_SECONDS) == {}


def test_what_is_quick_anyway_makes_nobody_slow():
    assert steady({"n1": 0.001, "n2": 0.09}).slowness(KIND, 10.0) == {"n1": 0, "n2": 0}


def test_a_forgotten_node_has_no_pace():
    known = steady({"n1": 1.0, "n2": 100.0, "n3": 4.0})
    known.forget("n1")

    assert known.slowness(KIND, 10.0) == {"n2": 4, "n3": 0}


@given(st.integers(1, 9), st.integers(1, 100), st.integers(1, 100))
def test_the_quicker_comes_first_whatever_else_is_free(slowness: int, free: int, other: int):
    known = nodes(workload("n1"), workload("n2"))
    asked = wanted(item("w", 1))

    assert rank(asked, known["n2"], free, slowness=0) < rank(asked, known["n1"], other, slowness=slowness)
    assert rank(asked, known["n1"], free, slowness=9) < rank(asked, known["n2"], other, trouble=1, slowness=0)


def test_a_slow_node_is_used_when_the_quick_ones_are_full():
    known = nodes(workload("n1", slots=9), workload("n2", slots=2))
    queue = queue_of(*(item(f"w{number}", number) for number in range(1, 5)))

    taken = chosen_by_pace(queue, known, {"n1": 9, "n2": 2}, {"n1": 3, "n2": 0}, NOW)

    assert taken == ["n2", "n2", "n1", "n1"]
