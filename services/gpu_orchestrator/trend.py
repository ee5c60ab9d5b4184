"""Whether memory is running out, and when: from samples of its use, most of which mean nothing.

The slope is that of Theil and Sen, the median of the slopes between all pairs of samples (H. Theil 1950; P. K. Sen
1968); its band is two standard errors, from the residuals. They are not made robust: a step leaves some that are large,
and so tells that it is no trend. A climb alone proves no leak, for memory that is collected climbs too, until it is.
So a climb counts only once it lasted a while without a fall, and where use fell before, only as far as it goes beyond
what it fell from. Rising peaks count too. Sizes are MiB, times seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import inf, sqrt
from statistics import median

Point = tuple[float, float]
"""When, and how much was in use."""

MOST_POINTS = 25
LEAST_POINTS = 5
SIGMAS_PER_MAD = 1.4826
BAND_SIGMAS = 2.0
FALL_SIGMAS = 8.0
FALL_RATIO = 0.005
"""Of the total: use that goes down by less has not fallen."""
FLAT_RATIO = 0.001
STEADY_RATIO = 0.25
KEPT_PEAKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`mb` is the fitted use at the last sample; `low` and `high` bound the slope, in MiB a second."""

    mb: float
    slope: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """In how many seconds nothing is left, and in how many at the earliest and latest; infinite: not to be seen.

    `first_climb`: use was never seen to fall, so nothing tells a leak from memory that is not collected yet.
    """

    seconds: float = inf
    earliest: float = inf
    latest: float = inf
    first_climb: bool = False


NEVER = Forecast()


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is remembered of a device's use. `climb`: the samples since it last fell; `peaks`: what it fell from."""

    climb: tuple[Point, ...] = ()
    peaks: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """`seconds`: how long a climb must last to count; a slow one is looked at for up to `long_seconds`.
    `memory_seconds`: for how long a peak is remembered.
    """

    seconds: float = 60.0
    long_seconds: float = 600.0
    memory_seconds: float = 1800.0


def fit(points: Sequence[Point]) -> Line | None:
    """None: too few points to say anything."""
    if len(points) < LEAST_POINTS:
        return None
    slope = median((mb - earlier_mb) / (at - earlier) for (earlier, earlier_mb), (at, mb) in combinations(points, 2))
    base = median(mb - slope * at for at, mb in points)
    squares = sum((mb - base - slope * at) ** 2 for at, mb in points)
    middle = sum(at for at, _ in points) / len(points)
    spread = sum((at - middle) ** 2 for at, _ in points)
    margin = BAND_SIGMAS * sqrt(squares / (len(points) - 2) / spread)
    return Line(mb=base + slope * points[-1][0], slope=slope, low=slope - margin, high=slope + margin)


def went_on(course: Course, at: float, mb: float, total_mb: float, window: Window) -> Course:
    """One more sample."""
    peaks = tuple(peak for peak in course.peaks if at - peak[0] <= window.memory_seconds)
    climb = tuple(point for point in course.climb if at - point[0] <= window.long_seconds)
    top = max(climb, key=lambda point: point[1], default=None)
    if top is not None and mb < top[1] - _fall(climb, total_mb):
        return Course(climb=((at, mb),), peaks=(*peaks, top)[-KEPT_PEAKS:])
    return Course(climb=(*climb, (at, mb)), peaks=peaks)


def line_of(course: Course, seconds: float) -> Line | None:
    """Of the last `seconds` without a fall; None when it fell since, or went by steps."""
    points = course.climb
    if not points or points[-1][0] - points[0][0] < seconds:
        return None
    recent = _thinned([point for point in points if points[-1][0] - point[0] <= seconds])
    line, half = fit(recent), len(recent) // 2
    return line if line is not None and all(_goes_with(part, line) for part in (recent[:half], recent[half:])) else None


def _goes_with(points: Sequence[Point], line: Line) -> bool:
    """A step is steep as a whole and flat in one of its halves."""
    own = fit(points)
    return own is not None and own.slope * line.slope >= STEADY_RATIO * line.slope**2


def forecast(course: Course, total_mb: float, window: Window) -> Forecast:
    """The surest of what the climb, looked at shortly and at length, and what the peaks lead to."""
    found = [_of_climb(course, total_mb, seconds) for seconds in (window.seconds, window.long_seconds)]
    return min(*found, _of_peaks(course, total_mb, window), key=lambda each: each.latest)


def _of_climb(course: Course, total_mb: float, seconds: float) -> Forecast:
    mbs = [mb for _, mb in course.climb]
    if not mbs or max(mbs) - min(mbs) < FLAT_RATIO * total_mb:
        return NEVER
    line = line_of(course, seconds)
    if line is None or not course.peaks:
        return replace(_until(total_mb, line), first_climb=not course.peaks)
    peak_at, peak = max(course.peaks, key=lambda point: point[1])
    beyond = (line.mb - peak) / (course.climb[-1][0] - peak_at)
    slope, low, high = (min(beyond, each) for each in (line.slope, line.low, line.high))
    return _until(total_mb, Line(mb=line.mb, slope=slope, low=low, high=high))


def _of_peaks(course: Course, total_mb: float, window: Window) -> Forecast:
    if not course.peaks or course.peaks[-1][0] - course.peaks[0][0] < window.seconds:
        return NEVER
    return _until(total_mb, fit(course.peaks))


def _until(total_mb: float, line: Line | None) -> Forecast:
    if line is None or line.slope <= 0:
        return NEVER
    left = max(0.0, total_mb - line.mb)
    return Forecast(
        seconds=left / line.slope, earliest=left / line.high, latest=left / line.low if line.low > 0 else inf
    )


def _fall(points: Sequence[Point], total_mb: float) -> float:
    """By how much use must go down to have fallen: by more than it trembles."""
    steps = [abs(mb - before) for (_, before), (_, mb) in pairwise(points[-2 * MOST_POINTS :])]
    trembling = SIGMAS_PER_MAD * median(steps) / sqrt(2) if steps else 0.0
    return max(FALL_RATIO * total_mb, FALL_SIGMAS * trembling)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = -(-len(points) // MOST_POINTS)
    return points[::-1][::step][::-1]
