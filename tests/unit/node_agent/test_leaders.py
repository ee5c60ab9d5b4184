"""Of two leaders the one with the higher epoch took the other's place."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.leaders import LOGS_REMEMBERED, Leaders

MADE = datetime(2030, 1, 1, tzinfo=UTC)


@given(st.lists(st.integers(1, 20)))
def test_a_leader_is_replaced_once_a_higher_epoch_was_heard(epochs: list[int]):
    leaders = Leaders()
    for number, epoch in enumerate(epochs):
        newest = max(epochs[: number + 1])

        assert leaders.replaced(MADE, epoch) == (newest if newest > epoch else None)


def test_a_log_that_was_made_anew_begins_again():
    leaders = Leaders()
    leaders.replaced(MADE, 7)

    assert leaders.replaced(MADE + timedelta(days=1), 1) is None
    assert leaders.replaced(MADE, 6) == 7


def test_one_that_does_not_tell_its_log_is_compared_with_nobody():
    leaders = Leaders()
    leaders.replaced(MADE, 7)

    assert leaders.replaced(None, 0) is None


def test_only_the_logs_heard_of_last_are_remembered():
    leaders = Leaders()
    for day in range(LOGS_REMEMBERED + 1):
        leaders.replaced(MADE + timedelta(days=day), 7)

    assert leaders.replaced(MADE, 6) is None
    assert leaders.replaced(MADE + timedelta(days=LOGS_REMEMBERED), 6) == 7
