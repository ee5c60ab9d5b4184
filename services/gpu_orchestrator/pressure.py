"""How near a device is to having nothing left, and who brought it there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from libs.common.contracts.gpu_orchestrator import PressureLevel
from services.gpu_orchestrator.trend import Forecast

FIRST_CLIMB = 0.85
"""Of the seconds: what was never seen to fall may be memory that is not collected yet, and is told as late as leaves a
minute, with a margin for what trembles."""

_WORSE = {level: place for place, level in enumerate(PressureLevel)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What makes a level: how soon nothing is left, at the latest; how little is left, as a part of the whole (RAM
    only: a full GPU is a good one); in what part of the time everything stalls for memory. `hold_seconds`: how long
    it must be better before the level goes down.
    """

    elevated_seconds: float = 90.0
    critical_seconds: float = 45.0
    elevated_left: float = 0.10
    critical_left: float = 0.05
    elevated_stalled: float = 0.10
    critical_stalled: float = 0.40
    hold_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The level, why, and since when less would do."""

    level: PressureLevel = PressureLevel.OK
    reason: str = ""
    better_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    pid: int
    grown_mb: int
    used_mb: int


def judged(
    forecast: Forecast, left_ratio: float | None, stalled_ratio: float | None, limits: Limits
) -> tuple[PressureLevel, str]:
    """What is so now, without a memory. The worst counts; what is None does not."""
    left = inf if left_ratio is None else left_ratio
    stalled = 0.0 if stalled_ratio is None else stalled_ratio
    elevated_seconds = limits.elevated_seconds * (FIRST_CLIMB if forecast.first_climb else 1)
    for level, seconds, least, most in (
        (PressureLevel.CRITICAL, limits.critical_seconds, limits.critical_left, limits.critical_stalled),
        (PressureLevel.ELEVATED, elevated_seconds, limits.elevated_left, limits.elevated_stalled),
    ):
        if forecast.latest <= seconds:
            return level, f"nothing is left in about {forecast.seconds:.0f} s if it goes on"
        if left < least:
            return level, f"{left:.1%} are left"
        if stalled > most:
            return level, f"everything waits for memory {stalled:.0%} of the time"
    return PressureLevel.OK, ""


def stepped(before: Standing, level: PressureLevel, reason: str, now: float, limits: Limits) -> Standing:
    """Up at once; down only after it was better for a while."""
    if _WORSE[level] > _WORSE[before.level]:
        return Standing(level=level, reason=reason)
    if level == before.level:
        return Standing(level=level, reason=reason)
    since = now if before.better_since is None else before.better_since
    if now - since >= limits.hold_seconds:
        return Standing(level=level, reason=reason)
    return replace(before, better_since=since)


def growers(before: Mapping[int, int], now: Mapping[int, int], count: int) -> list[Growth]:
    """Of processes with what they use: those that grew most, the first most of all. Who is new grew from nothing."""
    grown = [Growth(pid=pid, grown_mb=mb - before.get(pid, 0), used_mb=mb) for pid, mb in now.items()]
    return sorted((each for each in grown if each.grown_mb > 0), key=lambda each: (-each.grown_mb, each.pid))[:count]
