"""`docs/memory-forecast.svg`: what is forecast from recorded and made traces, beside what two endpoints would say."""

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path

from libs.common.contracts.gpu_orchestrator import PressureLevel
from services.gpu_orchestrator.pressure import Limits, judged
from services.gpu_orchestrator.trend import Course, Forecast, Window, forecast, went_on

RECORDED = Path(__file__).resolve().parents[2] / "tests" / "data" / "memory" / "recorded.csv"
WINDOW = Window()
ALARM_SECONDS = 90.0
WIDTH, HEIGHT, LEFT, TOP, GAP = 270, 150, 60, 60, 46
LEAST_LOG, MOST_LOG = 0.7, 4.0
USE, OURS, ENDPOINTS, GRID = "#555555", "#1565c0", "#e07b00", "#dddddd"


@dataclass(frozen=True, slots=True)
class Trace:
    title: str
    total_mb: float
    used_mb: Sequence[float]


def forecast_plot() -> str:
    """An SVG of two rows: use, and the seconds that are left by both methods."""
    traces = _traces()
    width = LEFT + len(traces) * (WIDTH + GAP)
    height = TOP + 2 * (HEIGHT + GAP) + 20
    parts = [part for number, trace in enumerate(traces) for part in _column(number, trace)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
            ' font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *_legend(),
            *parts,
            "</svg>",
            "",
        ]
    )


def _traces() -> list[Trace]:
    with RECORDED.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    leaking = [float(row["leaking_mb"]) for row in rows]
    chance = random.Random(3)  # the same picture every time
    step = [20_000 + 28_000 * (second >= 150) + chance.gauss(0, 200) for second in range(300)]
    late = [13_000 + 340 * (second % 130) + chance.gauss(0, 100) for second in range(420)]
    noise = [40_000 + chance.gauss(0, 1500) for _ in range(300)]
    return [
        Trace("a leak (recorded)", 500, [mb for mb in leaking if mb < 500]),
        Trace("a garbage collector (recorded)", 180, [float(row["collecting_mb"]) for row in rows]),
        Trace("a step", 65_536, step),
        Trace("noise", 65_536, noise),
        Trace("collected late, near the end", 65_536, late),
    ]


def ours(trace: Trace) -> list[Forecast]:
    course, told = Course(), []
    for second, mb in enumerate(trace.used_mb):
        course = went_on(course, float(second), mb, trace.total_mb, WINDOW)
        told.append(forecast(course, trace.total_mb, WINDOW))
    return told


def endpoints(trace: Trace) -> list[float]:
    """From the first and the last sample of the last minute."""
    seconds, told = int(WINDOW.seconds), []
    for second, mb in enumerate(trace.used_mb):
        slope = (mb - trace.used_mb[second - seconds]) / seconds if second >= seconds else 0.0
        told.append((trace.total_mb - mb) / slope if slope > 0 else inf)
    return told


def _column(number: int, trace: Trace) -> list[str]:
    x, upper, lower = LEFT + number * (WIDTH + GAP), TOP, TOP + HEIGHT + GAP
    count = len(trace.used_mb)
    across = [x + WIDTH * second / (count - 1) for second in range(count)]
    used = [upper + HEIGHT * (1 - mb / trace.total_mb) for mb in trace.used_mb]
    parts = [
        f'<text x="{x}" y="{upper - 10}" font-weight="bold">{trace.title}</text>',
        _frame(x, upper),
        _line(zip(across, used, strict=True), USE, 1.5),
        _frame(x, lower),
        *_grid(x, lower),
    ]
    theirs, told = endpoints(trace), ours(trace)
    for left, alarms, colour, thick in (
        (theirs, [left <= ALARM_SECONDS for left in theirs], ENDPOINTS, 1.5),
        ([each.latest for each in told], [_is_alarm(each) for each in told], OURS, 2.5),
    ):
        parts.extend(_pieces(across, left, lower, colour, thick))
        if any(alarms):
            parts.append(_mark(across[alarms.index(True)], upper, colour))
    parts.extend(
        f'<text x="{x + WIDTH * part}" y="{lower + HEIGHT + 16}" text-anchor="middle">{(count - 1) * part:.0f} s</text>'
        for part in (0, 0.5, 1)
    )
    return parts if number else [*parts, *_axis_words(x, upper, lower)]


def _is_alarm(told: Forecast) -> bool:
    return judged(told, None, None, Limits())[0] is not PressureLevel.OK


def _axis_words(x: int, upper: int, lower: int) -> list[str]:
    return [
        f'<text x="{x - 6}" y="{upper + 10}" text-anchor="end">all</text>',
        f'<text x="{x - 6}" y="{upper + HEIGHT}" text-anchor="end">none</text>',
        f'<text x="{x - 44}" y="{lower - 8}">seconds left</text>',
        *(
            f'<text x="{x - 6}" y="{_height(lower, seconds) + 4:.1f}" text-anchor="end">{seconds}</text>'
            for seconds in (10, 90, 1000)
        ),
    ]


def _height(lower: int, seconds: float) -> float:
    part = (log10(max(seconds, 1e-9)) - LEAST_LOG) / (MOST_LOG - LEAST_LOG)
    return lower + HEIGHT * (1 - min(1.0, max(0.0, part)))


def _pieces(across: Sequence[float], left: Sequence[float], lower: int, colour: str, thick: float) -> list[str]:
    """Only where an end is to be seen."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, seconds in zip(across, left, strict=True):
        if seconds < 10**MOST_LOG:
            pieces[-1].append((at, _height(lower, seconds)))
        elif pieces[-1]:
            pieces.append([])
    return [_line(piece, colour, thick) for piece in pieces if len(piece) > 1]


def _line(points: Iterable[tuple[float, float]], colour: str, thick: float) -> str:
    told = " ".join(f"{at:.1f},{height:.1f}" for at, height in points)
    return f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'


def _frame(x: int, y: int) -> str:
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999999"/>'


def _grid(x: int, lower: int) -> list[str]:
    return [
        f'<line x1="{x}" x2="{x + WIDTH}" y1="{_height(lower, seconds):.1f}" y2="{_height(lower, seconds):.1f}"'
        f' stroke="{"#c62828" if seconds == ALARM_SECONDS else GRID}"/>'
        for seconds in (10, 90, 1000)
    ]


def _mark(x: float, upper: int, colour: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{upper}" y2="{upper + HEIGHT}" stroke="{colour}" stroke-dasharray="4 3"/>'
    )


def _legend() -> list[str]:
    words = (
        (USE, "in use"),
        (ENDPOINTS, "two endpoints of the last minute"),
        (OURS, "Theil and Sen, the late end of the band"),
        ("#c62828", "alarm: at most 90 s left, 77 s in a first climb; dashed: the first one"),
    )
    parts, x = [], LEFT
    for colour, text in words:
        parts.append(f'<rect x="{x}" y="14" width="18" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 24}" y="21">{text}</text>')
        x += 60 + 7 * len(text)
    return parts
