"""When memory runs out, from samples of its use; and that memory which is collected raises no alarm."""

import csv
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf, isfinite
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.gpu_orchestrator import PressureLevel
from services.gpu_orchestrator.pressure import FIRST_CLIMB, Limits, judged
from services.gpu_orchestrator.trend import NEVER, Course, Forecast, Window, fit, forecast, line_of, went_on

RECORDED = Path(__file__).parents[2] / "data/memory/recorded.csv"
TOTAL = 65_536.0
WINDOW = Window()
LIMITS = Limits()
ALARM_SECONDS, FIRST_ALARM_SECONDS = LIMITS.elevated_seconds, FIRST_CLIMB * LIMITS.elevated_seconds
LOOK_EVERY = 3
Use = Callable[[int], float]
"""What part of the whole is used in which second."""


@dataclass
class Played:
    """`announced`: the first second with an alarm. `exhausted`: the first in which nothing was left."""

    announced: int | None = None
    exhausted: int | None = None
    forecasts: list[Forecast] = field(default_factory=list)

    @property
    def warning_seconds(self) -> float:
        if self.announced is None or self.exhausted is None:
            return -inf
        return self.exhausted - self.announced


def play(use: Use, seconds: int | None = None) -> Played:
    course, played = Course(), Played()
    for second in count() if seconds is None else range(seconds):
        part = use(second)
        if part >= 1:
            played.exhausted = second
            break
        course = went_on(course, float(second), part * TOTAL, TOTAL, WINDOW)
        if second % LOOK_EVERY:
            continue
        played.forecasts.append(forecast(course, TOTAL, WINDOW))
        if played.announced is None and judged(played.forecasts[-1], None, None, LIMITS)[0] != PressureLevel.OK:
            played.announced = second
    return played


def trembling(use: Use, sigma: float) -> Use:
    chance = random.Random(7)
    return lambda second: use(second) + chance.gauss(0, sigma)


def leak(seconds: int, floor: float = 0.3, still: int = 0) -> Use:
    return lambda second: floor + (1 - floor) * max(0, second - still) / seconds


def sawtooth(period: int, floor: float, peak: float) -> Use:
    return lambda second: floor + (peak - floor) * (second % period) / period


@pytest.mark.parametrize("seconds", [150, 200, 400, 1200])
@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.005])
def test_a_linear_leak_is_announced_a_minute_before_the_end(seconds: int, sigma: float):
    assert play(trembling(leak(seconds), sigma)).warning_seconds >= 60


@pytest.mark.parametrize("still", [30, 200, 900])
def test_a_leak_after_a_time_of_rest_is_announced_as_well(still: int):
    assert play(trembling(leak(200, still=still), 0.002)).warning_seconds >= 60


def test_a_leak_under_a_sawtooth_is_announced_by_its_peaks():
    climbing = sawtooth(25, 0.1, 0.3)

    assert play(lambda second: climbing(second) + 0.6 * second / 3000).warning_seconds >= 60


@settings(max_examples=30, deadline=None)
@given(
    period=st.integers(2, 60),
    floor=st.floats(0.02, 0.5),
    height=st.floats(0.02, 0.45),
    sigma=st.sampled_from([0.0, 0.001, 0.005]),
)
def test_a_sawtooth_raises_no_alarm(period: int, floor: float, height: float, sigma: float):
    use = trembling(sawtooth(period, floor, floor + height), sigma)

    assert play(use, 300).announced is None


@settings(max_examples=10, deadline=None)
@given(period=st.integers(61, 250), floor=st.floats(0.02, 0.3), height=st.floats(0.02, 0.6))
def test_a_slow_sawtooth_raises_no_alarm_once_it_was_collected(period: int, floor: float, height: float):
    use = sawtooth(period, floor, floor + height)
    told = play(use, 3 * period).forecasts[period // LOOK_EVERY + 1 :]

    assert min(each.latest for each in told) > ALARM_SECONDS


@settings(max_examples=10, deadline=None)
@given(period=st.integers(61, 400), floor=st.floats(0.02, 0.5), height=st.floats(0.02, 0.3))
def test_a_slow_sawtooth_that_never_comes_near_the_end_raises_no_alarm_at_all(period: int, floor: float, height: float):
    left_at_peak = (1 - floor - height) / height * period

    told = play(sawtooth(period, floor, floor + height), 800)
    assert left_at_peak <= FIRST_ALARM_SECONDS * 1.05 or told.announced is None


@settings(max_examples=10, deadline=None)
@given(period=st.integers(150, 300), left_at_peak=st.floats(1, 55))
def test_the_first_climb_that_comes_near_the_end_is_that_of_a_leak_and_no_later_one_is_told(
    period: int, left_at_peak: float
):
    """Up to its fall it is the same samples as a leak, which must be told a minute before its end."""
    slope = 0.8 / (period + left_at_peak)
    use = sawtooth(period, 0.2, 0.2 + slope * period)
    told, leaking = play(use, 4 * period), play(leak(period + round(left_at_peak), floor=0.2))

    assert leaking.warning_seconds >= 60
    assert told.announced is not None
    assert told.announced < period
    after = told.forecasts[-(-period // LOOK_EVERY) + 1 :]
    assert all(judged(each, None, None, LIMITS)[0] == PressureLevel.OK for each in after)


@settings(max_examples=20, deadline=None)
@given(height=st.floats(0.01, 0.7), at=st.integers(0, 150), sigma=st.sampled_from([0.0, 0.002, 0.01]))
def test_a_step_raises_no_alarm(height: float, at: int, sigma: float):
    assert play(trembling(lambda second: 0.2 + height * (second >= at), sigma), 300).announced is None


@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.05])
def test_noise_raises_no_alarm(sigma: float):
    assert play(trembling(lambda _: 0.6, sigma), 2000).announced is None


def recorded(column: str) -> list[float]:
    """A second each: of a machine while test suites ran, of a program that leaks, of one that collects."""
    with RECORDED.open(encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def test_a_recorded_leak_is_announced_a_minute_before_the_end():
    used = recorded("leaking_mb")

    assert play(lambda second: used[second] / 500).warning_seconds >= 60


def test_a_recorded_garbage_collector_raises_no_alarm():
    used = recorded("collecting_mb")

    assert play(lambda second: used[second] / 180, len(used)).announced is None


def test_a_recorded_machine_that_works_raises_no_alarm():
    used = recorded("machine_mb")

    assert play(lambda second: used[second] / 5000, len(used)).announced is None


def test_the_time_that_is_left_is_within_its_band_and_right():
    told = play(trembling(leak(400), 0.002), 200).forecasts[-1]

    assert told.earliest <= told.seconds <= told.latest
    assert told.seconds == pytest.approx(200, rel=0.1)


def test_use_that_rests_or_goes_down_never_ends():
    assert play(lambda _: 0.9, 100).forecasts[-1] == NEVER
    assert play(lambda second: 0.9 - second / 1000, 100).forecasts[-1] == NEVER


points = st.lists(st.floats(0, 1e5), min_size=5, max_size=25).map(
    lambda mbs: [(float(n), mb) for n, mb in enumerate(mbs)]
)


@given(points, st.floats(-100, 100), st.floats(-1e5, 1e5))
def test_the_slope_follows_when_a_line_is_added(some: list[tuple[float, float]], slope: float, offset: float):
    before, after = fit(some), fit([(at, mb + slope * at + offset) for at, mb in some])

    assert before is not None
    assert after is not None
    assert after.slope == pytest.approx(before.slope + slope, abs=1e-3)
    assert after.low <= after.slope <= after.high


@given(points, st.integers(0, 4), st.floats(0, 1e6))
def test_one_sample_that_is_wild_does_not_turn_the_slope(some: list[tuple[float, float]], which: int, wild: float):
    straight = [(at, 10 * at) for at, _ in some]
    straight[which] = (straight[which][0], wild)
    line = fit(straight)

    assert line is not None
    if len(some) >= 9:
        assert line.slope == pytest.approx(10)


def test_a_line_is_told_only_of_a_window_without_a_fall():
    course = Course()
    for second in range(61):
        course = went_on(course, float(second), 1000.0 + second, TOTAL, WINDOW)
    rising = line_of(course, WINDOW.seconds)
    fallen = went_on(course, 61.0, 100.0, TOTAL, WINDOW)

    assert rising is not None
    assert rising.slope == pytest.approx(1)
    assert (line_of(fallen, WINDOW.seconds), [mb for _, mb in fallen.peaks]) == (None, [1060.0])


def test_what_is_remembered_is_bounded():
    course = Course()
    for second in range(5000):
        course = went_on(course, float(second), 30_000.0 * (second % 20), TOTAL, WINDOW)

    assert len(course.peaks) <= 12
    assert len(course.climb) <= WINDOW.long_seconds + 1
    assert isfinite(course.climb[-1][1])
