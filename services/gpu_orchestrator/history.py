"""What a device's memory was like: every second for a while, coarser for a day."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

FINE_STEP, FINE_POINTS = 1.0, 900
COARSE_STEP, COARSE_POINTS = 30.0, 2880


@dataclass(frozen=True, slots=True)
class Point:
    """`used_mb` is the most and `free_mb` the least of its step."""

    at: datetime
    used_mb: int
    free_mb: int | None


class History:
    """Bounded: the oldest go."""

    def __init__(self) -> None:
        self._fine: deque[Point] = deque(maxlen=FINE_POINTS)
        self._coarse: deque[Point] = deque(maxlen=COARSE_POINTS)
        self.total_mb: int | None = None

    def add(self, point: Point, total_mb: int | None) -> None:
        self.total_mb = total_mb
        self._fine.append(point)
        last = self._coarse[-1] if self._coarse else None
        if last is None or (point.at - last.at).total_seconds() >= COARSE_STEP:
            self._coarse.append(point)
        else:
            self._coarse[-1] = _joined(last, point)

    def since(self, at: datetime, now: datetime) -> tuple[float, Sequence[Point]]:
        """The length of a step and the points, the oldest first: as fine as is kept for that long."""
        is_fine = (now - at).total_seconds() <= FINE_STEP * FINE_POINTS
        points = self._fine if is_fine else self._coarse
        return FINE_STEP if is_fine else COARSE_STEP, [point for point in points if point.at >= at]


def _joined(first: Point, other: Point) -> Point:
    frees = [each.free_mb for each in (first, other) if each.free_mb is not None]
    return Point(first.at, max(first.used_mb, other.used_mb), min(frees, default=None))
