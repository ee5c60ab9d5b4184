"""Levels of pressure, and who grew."""

from dataclasses import replace
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.gpu_orchestrator import PressureLevel
from services.gpu_orchestrator.pressure import Limits, Standing, growers, judged, stepped
from services.gpu_orchestrator.trend import NEVER, Forecast

LIMITS = Limits()
OK, ELEVATED, CRITICAL = PressureLevel
ORDER = [OK, ELEVATED, CRITICAL]


def ends_in(seconds: float) -> Forecast:
    return Forecast(seconds=seconds, earliest=seconds / 2, latest=seconds)


def test_the_worst_of_all_reasons_counts():
    assert judged(NEVER, 0.5, 0.0, LIMITS) == (OK, "")
    assert judged(ends_in(80), 0.5, None, LIMITS)[0] == ELEVATED
    assert judged(ends_in(40), 0.5, None, LIMITS)[0] == CRITICAL
    assert judged(NEVER, 0.09, None, LIMITS)[0] == ELEVATED
    assert judged(ends_in(80), 0.04, None, LIMITS)[0] == CRITICAL
    assert judged(NEVER, 0.5, 0.2, LIMITS)[0] == ELEVATED
    assert judged(NEVER, None, None, LIMITS)[0] == OK


def test_an_end_that_is_only_possible_raises_no_level():
    assert judged(Forecast(seconds=50, earliest=10, latest=inf), None, None, LIMITS)[0] == OK


def test_a_first_climb_is_told_later_than_one_that_goes_beyond_a_peak():
    first = replace(ends_in(77), first_climb=True)

    assert (judged(first, None, None, LIMITS)[0], judged(ends_in(77), None, None, LIMITS)[0]) == (OK, ELEVATED)
    assert judged(replace(ends_in(76), first_climb=True), None, None, LIMITS)[0] == ELEVATED


def test_a_level_goes_up_at_once_and_down_only_after_a_while():
    up = stepped(Standing(), CRITICAL, "soon", 0, LIMITS)
    better = stepped(up, OK, "", 10, LIMITS)
    still = stepped(better, OK, "", 39, LIMITS)
    down = stepped(still, OK, "", 40, LIMITS)

    assert [each.level for each in (up, better, still, down)] == [CRITICAL, CRITICAL, CRITICAL, OK]


def test_who_gets_worse_again_waits_anew():
    up = stepped(Standing(), ELEVATED, "soon", 0, LIMITS)
    better = stepped(up, OK, "", 10, LIMITS)
    again = stepped(better, ELEVATED, "soon", 20, LIMITS)

    assert stepped(stepped(again, OK, "", 30, LIMITS), OK, "", 50, LIMITS).level == ELEVATED


@given(st.lists(st.tuples(st.sampled_from(ORDER), st.floats(0.1, 20)), max_size=40))
def test_a_level_is_never_below_what_is_so_now_and_flaps_at_most_once_in_a_while(
    course: list[tuple[PressureLevel, float]],
):
    standing, now, went_down = Standing(), 0.0, -inf
    for level, pause in course:
        now += pause
        after = stepped(standing, level, "", now, LIMITS)
        assert ORDER.index(after.level) >= ORDER.index(level)
        if ORDER.index(after.level) < ORDER.index(standing.level):
            assert now - went_down >= LIMITS.hold_seconds
            went_down = now
        standing = after


def test_who_grew_most_comes_first_and_who_shrank_not_at_all():
    found = growers({1: 100, 2: 500, 3: 10}, {1: 900, 2: 400, 3: 20, 4: 300}, 2)

    assert [(each.pid, each.grown_mb, each.used_mb) for each in found] == [(1, 800, 900), (4, 300, 300)]
