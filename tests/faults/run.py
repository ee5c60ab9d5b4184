"""All faults in one run: each is played by a process of its own, a few at a time, and its progress is told."""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.faults.crowd import AT_LEAST_RUNNING
from tests.faults.rows import Row

MOST_SECONDS = 1500.0
GRACE_SECONDS = 30.0
HEAVY = 8000
"""Rows with so many items are not played beside one another."""


class Progress:
    """What is told to who waits half an hour."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._done = 0
        self._began = time.monotonic()

    def begun(self, name: str) -> None:
        self._say(f"{name} …")

    def done(self, text: str) -> None:
        self._done += 1
        self._say(text)

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        sys.stderr.write(f"{minutes:3d}:{seconds:02d}  {self._done:2d}/{self._rows}  {text}\n")
        sys.stderr.flush()


class Run:
    """`failed` says of each row that could not be played to its end why."""

    def __init__(self, rows: Sequence[Row], options: Sequence[str], *, at_once: int, progress: Progress) -> None:
        self._rows = rows
        self._options = options
        self._at_once = max(1, at_once)
        self._to_play = sorted(rows, key=lambda row: -row.most)
        self._heavy = False
        self._one_ended = asyncio.Condition()
        self._progress = progress
        self.failed: dict[str, str] = {}

    async def play_all(self) -> dict[str, Any]:
        """What is written into the raw results: when and where they were counted, and every row."""
        began, started = time.gmtime(), time.monotonic()
        load = os.getloadavg()[0]
        by_name: dict[str, dict[str, Any]] = {}
        await asyncio.gather(*(self._play_in_turn(by_name) for _ in range(self._at_once)))
        return {
            "began": time.strftime("%Y-%m-%d %H:%M UTC", began),
            "seconds": round(time.monotonic() - started),
            "at_once": self._at_once,
            "processors": len(os.sched_getaffinity(0)),
            "load_before": round(load, 1),
            "rows": [by_name[row.name] for row in self._rows if row.name in by_name],
        }

    async def _play_in_turn(self, by_name: dict[str, dict[str, Any]]) -> None:
        """The largest first, but never two heavy ones beside one another."""
        while self._to_play:
            row = next((row for row in self._to_play if not (self._heavy and _heavy(row))), None)
            if row is None:
                async with self._one_ended:
                    await self._one_ended.wait()
                continue
            self._to_play.remove(row)
            self._heavy = self._heavy or _heavy(row)
            found = await self._told(row)
            if found is not None:
                by_name[row.name] = found
            self._heavy = self._heavy and not _heavy(row)
            async with self._one_ended:
                self._one_ended.notify_all()

    async def _told(self, row: Row) -> dict[str, Any] | None:
        self._progress.begun(row.name)
        found = await self._played(row)
        if found is None:
            self._progress.done(f"{row.name}: FAILED: {self.failed[row.name].splitlines()[-1]}")
        else:
            self._progress.done(f"{row.name}: {_in_words(found)}")
        return found

    async def _played(self, row: Row) -> dict[str, Any] | None:
        command = [sys.executable, "-m", "tests.faults", "play", "--row", row.name, *self._options]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        try:
            async with asyncio.timeout(MOST_SECONDS):
                out, errors = await process.communicate()
        except TimeoutError:
            self.failed[row.name] = f"it took longer than {MOST_SECONDS:.0f} s"
            return None
        finally:
            await _ended(process)
        if process.returncode != 0:
            self.failed[row.name] = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
            return None
        found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
        return found


def _heavy(row: Row) -> bool:
    return row.most >= HEAVY


async def _ended(process: Process) -> None:
    """It takes its own processes with it, for which it needs a moment."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    except TimeoutError:
        process.kill()


def few_ran(found: Mapping[str, Any]) -> bool:
    """Whether something was done to the mesh while hardly anything ran."""
    least = found["least_running"]
    return least is not None and least < AT_LEAST_RUNNING


def _in_words(found: Mapping[str, Any]) -> str:
    text = (
        f"{found['accepted']} accepted, {found['ended_once']} ended once, {found['lost']} lost, "
        f"{found['doubled']} doubled ({found['seconds']:.0f} s; {found['done']})"
    )
    if few_ran(found):
        text += f"; only {found['least_running']} jobs ran when something was done"
    return "; ".join((text, *found["problems"][:3]))


def shown(told: Mapping[str, Any], failed: Mapping[str, str]) -> str:
    """The end of the run, for people."""
    rows = told["rows"]
    sums = {name: sum(row[name] for row in rows) for name in ("accepted", "ended_once", "lost", "doubled")}
    lines = [f"\n{len(rows)} faults in {told['seconds']} s: " + ", ".join(f"{v} {k}" for k, v in sums.items())]
    lines += [f"{row['fault']}: only {row['least_running']} jobs ran" for row in rows if few_ran(row)]
    lines += [f"\n{name} could not be played:\n{why}" for name, why in failed.items()]
    return "\n".join(lines) + "\n"
