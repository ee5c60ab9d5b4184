"""The table of one run, for the screen and for `docs/queues.md`."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generate.markdown import table

OURS = "Compute Mesh"
LIMITS: Mapping[bool, Mapping[str, float]] = {
    True: {"rate": 2_000, "p50": 3.0, "p99": 15.0},
    False: {"rate": 4_000, "p50": 1.5},
}
"""What we ask of ourselves, with and without a sync before each receipt."""

HEAD = ("queue", "kept in", "synced", "jobs/s", "least … most", "ours ÷ it", "p50 ms", "p99 ms")
INTRODUCTION = """\
# Our queue beside others

<!-- Written by `python -m benchmarks.peers table` from benchmarks/results/peers.json. Changes made here are lost. -->

`python -m benchmarks.peers`, {runs} runs of every queue in turn, {items:,} no-op items of 300 bytes each, {machine},
load average at the start {load_before:.1f} ({at}). Medians; what counts is the ratio in the same run.

- **jobs/s**: all items are submitted, then the worker starts: the rate between the first job and the last.
- **p50, p99**: on the idle queue, one item at a time: from before the submission until its job runs.
- **synced**: nothing is confirmed before it is on the disk. A ratio compares queues of the same kind.

The truth are times that the jobs append to a file. Ours carries the whole life of an item: durable submission,
assignment to a node that journals it, an attempt token, a durable outcome. Into the archive it goes as soon as there
is less to do, 5 seconds later at most: a run that is shorter than that does not show what the archive costs. The others
keep no result, and acknowledge after the run where they can: Celery with two processes, Dramatiq with two of eight
threads, arq with 100 jobs and 10 ms between polls, taskiq-nats with two processes, procrastinate with 50 jobs.

"""


def show(results: Mapping[str, Any]) -> int:
    """Prints it; 1 when a limit of ours is missed."""
    for row in _rows(results):
        print("  ".join(f"{cell:<22}" for cell in row[:2]), "  ".join(f"{cell:>16}" for cell in row[2:]))
    missed = [line for line in _limits(results) if "missed" in line[-1]]
    for line in _limits(results):
        print(*line)
    return 1 if missed else 0


def write(source: Path, target: Path) -> None:
    results = json.loads(source.read_text())
    runs = min(len(row["runs"]) for row in results["rows"])
    limits = table(("ours", "figure", "measured", "limit", "ratio", ""), _limits(results))
    text = INTRODUCTION.format(runs=runs, **{key: results[key] for key in ("items", "machine", "load_before", "at")})
    target.write_text(text + table(HEAD, _rows(results)) + "\n\n## What we ask of ourselves\n\n" + limits + "\n")


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    ours = {row["synced"]: _rate(row) for row in results["rows"] if row["queue"] == OURS}
    return [_row(row, ours.get(row["synced"])) for row in results["rows"]]


def _row(row: Mapping[str, Any], ours: float | None) -> list[str]:
    rates = [run["jobs_per_second"] for run in row["runs"]]
    return [
        row["queue"],
        row["kept"],
        "yes" if row["synced"] else "no",
        f"{_rate(row):,.0f}",
        f"{min(rates):,.0f} … {max(rates):,.0f}",
        "" if ours is None or row["queue"] == OURS else f"{ours / _rate(row):.1f}",
        f"{_wait(row, 0.50):.2f}",
        f"{_wait(row, 0.99):.1f}",
    ]


def _limits(results: Mapping[str, Any]) -> list[list[str]]:
    lines: list[list[str]] = []
    for row in results["rows"]:
        if row["queue"] != OURS:
            continue
        measured = {"rate": _rate(row), "p50": _wait(row, 0.50), "p99": _wait(row, 0.99)}
        for name, limit in LIMITS[row["synced"]].items():
            value = measured[name]
            kept = value >= limit if name == "rate" else value <= limit
            words = {"rate": "jobs/s, at least", "p50": "p50 ms, at most", "p99": "p99 ms, at most"}[name]
            verdict = "ok" if kept else "**missed**"
            lines.append([row["kept"], words, f"{value:,.2f}", f"{limit:g}", f"{value / limit:.2f}", verdict])
    return lines


def _rate(row: Mapping[str, Any]) -> float:
    return statistics.median(run["jobs_per_second"] for run in row["runs"])


def _wait(row: Mapping[str, Any], share: float) -> float:
    """The median over the runs of each run's quantile."""
    return statistics.median(_quantile(run["milliseconds"], share) for run in row["runs"])


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
