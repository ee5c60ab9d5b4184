"""Follows the use of every device: its trend, its level and its history, and tells when a level changes."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from math import isfinite

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import (
    PRESSURE,
    DeviceHistory,
    Grower,
    HistoryPoint,
    Pressure,
    PressureLevel,
    Trend,
)
from services.gpu_orchestrator.history import History, Point
from services.gpu_orchestrator.measuring import Measuring
from services.gpu_orchestrator.meters import Meters, Processes
from services.gpu_orchestrator.model import RAM, Entry
from services.gpu_orchestrator.observer import Observer
from services.gpu_orchestrator.pressure import Limits, Standing, growers, judged, stepped
from services.gpu_orchestrator.trend import NEVER, Course, Forecast, Line, Window, forecast, line_of, went_on

log = structlog.get_logger()

SNAPSHOT_SECONDS = 10.0
KEPT_SNAPSHOTS = 7
TOLD_GROWERS = 5


@dataclass(slots=True)
class Followed:
    """One device."""

    course: Course = field(default_factory=Course)
    standing: Standing = field(default_factory=Standing)
    forecast: Forecast = NEVER
    line: Line | None = None
    history: History = field(default_factory=History)
    told_at: float = float("-inf")


Snapshot = Mapping[str, Mapping[int, int]]
"""By device: how much each process uses of it."""


class Watching:
    """`again_seconds`: how often a level that is not OK is told again."""

    def __init__(
        self,
        *,
        node_id: str,
        measuring: Measuring,
        meters: Meters,
        processes: Processes,
        bus: Bus,
        clock: Clock,
        observer: Observer,
        window: Window,
        limits: Limits,
        again_seconds: float = 10.0,
    ) -> None:
        self._node_id = node_id
        self._measuring = measuring
        self._meters = meters
        self._processes = processes
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self._window = window
        self._limits = limits
        self._again_seconds = again_seconds
        self._followed: dict[str, Followed] = {}
        self._snapshots: deque[tuple[float, Snapshot]] = deque(maxlen=KEPT_SNAPSHOTS)
        self.stalled_ratio: float | None = None

    async def watch(self) -> None:
        """Measure, follow, tell. Raises `Unavailable`."""
        await self._measuring.refresh()
        now = self._clock.monotonic()
        self.stalled_ratio = self._meters.stalled_ratio()
        ledger = self._measuring.ledger
        for gone in self._followed.keys() - ledger.keys():
            del self._followed[gone]
        if not self._snapshots or now - self._snapshots[-1][0] >= SNAPSHOT_SECONDS:
            self._snapshots.append((now, await self._snapshot()))
        changed = {uuid: self._follow(entry, now) for uuid, entry in ledger.items()}
        for uuid, before in changed.items():
            await self._tell(uuid, before, now)

    def trend(self, device: str) -> Trend | None:
        followed = self._followed.get(device)
        return None if followed is None else _trend_view(followed)

    def history(self, device: str, seconds: float) -> DeviceHistory:
        now = self._clock.now()
        kept = self._followed[device].history if device in self._followed else History()
        step, points = kept.since(now - timedelta(seconds=seconds), now)
        told = (HistoryPoint(at=point.at, used_mb=point.used_mb, free_mb=point.free_mb) for point in points)
        return DeviceHistory(device=device, total_mb=kept.total_mb, step_seconds=step, points=tuple(told))

    def _follow(self, entry: Entry, now: float) -> PressureLevel:
        """Returns the level before."""
        followed = self._followed.setdefault(entry.uuid, Followed())
        before = followed.standing.level
        used, total = entry.taken_mb, entry.total_mb
        if used is None or total is None or total == 0:
            return before
        followed.history.add(Point(self._clock.now(), used, entry.free_mb), total)
        followed.course = went_on(followed.course, now, used, total, self._window)
        followed.line = line_of(followed.course, self._window.seconds)
        followed.forecast = forecast(followed.course, total, self._window)
        is_ram = entry.uuid == RAM
        left, stalled = (1 - used / total, self.stalled_ratio) if is_ram else (None, None)
        level, reason = judged(followed.forecast, left, stalled, self._limits)
        followed.standing = stepped(followed.standing, level, reason, now, self._limits)
        self._observer.pressed(entry.uuid, followed.standing.level, followed.forecast.seconds)
        return before

    async def _tell(self, device: str, before: PressureLevel, now: float) -> None:
        followed, entry = self._followed[device], self._measuring.ledger[device]
        level = followed.standing.level
        is_due = level != PressureLevel.OK and now - followed.told_at >= self._again_seconds
        if level == before and not is_due:
            return
        followed.told_at = now
        if level != before:
            reason = followed.standing.reason
            log.warning("memory_pressure", device=device, pressure=level, before=before, reason=reason)
        told, over = await self._growers(device, now)
        pressure = Pressure(
            node_id=self._node_id,
            at=self._clock.now(),
            device=device,
            before=before,
            trend=_trend_view(followed),
            total_mb=entry.total_mb or 0,
            used_mb=entry.taken_mb or 0,
            growers=tuple(told),
            over_seconds=over,
        )
        await self._bus.publish(PRESSURE, pressure)

    async def _growers(self, device: str, now: float) -> tuple[Iterable[Grower], float]:
        """Since the oldest snapshot, with the time since then."""
        at, oldest = self._snapshots[0]
        found = growers(oldest.get(device, {}), (await self._snapshot()).get(device, {}), TOLD_GROWERS)
        commands = await self._processes.commands([each.pid for each in found])
        told = [
            Grower(
                pid=each.pid,
                command=commands.get(each.pid, "")[:1024],
                reservation_id=next(iter(self._measuring.owners.get(each.pid, ())), None),
                grown_mb=each.grown_mb,
                used_mb=each.used_mb,
            )
            for each in found
        ]
        return told, now - at

    async def _snapshot(self) -> Snapshot:
        gpus = {
            state.gpu.uuid: {each.pid: each.used_mb or 0 for each in state.processes or ()}
            for state in self._measuring.states
        }
        return {RAM: await self._processes.residents(), **gpus}


def _trend_view(followed: Followed) -> Trend:
    told = followed.forecast
    return Trend(
        level=followed.standing.level,
        reason=followed.standing.reason,
        mb_per_minute=None if followed.line is None else round(60 * followed.line.slope, 3),
        exhausted_in_seconds=_finite(told.seconds),
        earliest_seconds=_finite(told.earliest),
        latest_seconds=_finite(told.latest),
    )


def _finite(seconds: float) -> float | None:
    return round(seconds, 1) if isfinite(seconds) else None
