"""Ids of ended items are known for a while, and take a bounded place."""

from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import given

from services.work_marshaling.identity import digest, server_id
from services.work_marshaling.remembered import RememberedIds
from tests.unit.work_marshaling.builders import NOW, submission

CONTENT = "00" * 16


def ids(most: int = 100, days: float = 1) -> RememberedIds:
    return RememberedIds(most=most, keep=timedelta(days=days))


def test_an_id_is_remembered_with_its_content():
    known = ids()
    known.remember("w", CONTENT, NOW)

    assert known.content_of("w") == CONTENT
    assert known.content_of("other") is None


def test_the_oldest_ids_go_first_when_there_are_too_many():
    known = ids(most=10)
    for number in range(15):
        known.remember(f"w{number}", CONTENT, NOW)

    assert [number for number in range(15) if known.content_of(f"w{number}")] == list(range(5, 15))


def test_an_id_is_forgotten_after_its_time():
    known = ids()
    known.remember("old", CONTENT, NOW)
    known.remember("new", CONTENT, NOW + timedelta(hours=12))
    known.forget(NOW + timedelta(days=1, hours=1))

    assert known.content_of("old") is None
    assert known.content_of("new") == CONTENT


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3600)), max_size=60))
def test_a_checkpoint_keeps_what_is_remembered(told: list[tuple[int, int]]):
    known, now = ids(most=20), NOW
    for number, seconds in told:
        now += timedelta(seconds=seconds)
        known.remember(f"w{number}", CONTENT, now)
    other = ids(most=20)
    for fact in known.facts():
        other.restore(fact)

    def kept(of: RememberedIds) -> list[int]:
        return [number for number in range(31) if of.content_of(f"w{number}")]

    assert kept(other) == kept(known)
    assert len(other) == len(known) <= 20


def test_the_same_content_has_the_same_digest_whatever_its_id_and_order():
    one = submission(work_id="a", payload={"x": 1, "y": [1.5, None]}, labels={"k": "v"})
    two = submission(work_id="b", payload={"y": [1.5, None], "x": 1}, labels={"k": "v"})

    assert digest(one) == digest(two)
    assert digest(one) != digest(submission(work_id="a", payload={"x": 2}))


def test_a_stream_that_was_made_anew_gives_other_ids():
    assert server_id(NOW, 1) != server_id(NOW + timedelta(milliseconds=1), 1)
    assert server_id(NOW, 1, 0) != server_id(NOW, 1)
