"""`python -m tests.faults` plays every fault in one run, and writes what was counted; `table` writes `docs/faults.md`.

With `--row` or `--scale` it is a try: what was counted is only shown.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.play import play
from tests.faults.report import NotOneRun, table
from tests.faults.rows import ROWS
from tests.faults.run import Progress, Run, few_ran, shown
from tests.faults.stage import CannotPlay

ROOT = Path(__file__).resolve().parents[2]
RAW = Path(__file__).parent / "results.json"
DOCUMENT = ROOT / "docs" / "faults.md"
CANNOT_PLAY = 3


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: the processes of a row must not outlive it
    if options.what == "play":
        return _play(options)
    if options.what == "run":
        return _run(options)
    try:
        DOCUMENT.write_text(table(json.loads(RAW.read_text())), encoding="utf-8")
    except (NotOneRun, OSError, ValueError) as error:
        sys.stderr.write(f"no table is made: {error}\n")
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("run", "table", "play"), default="run")
    parser.add_argument("--row", action="append", help="only faults whose name holds this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="the share of items and kills")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which then stay")
    parser.add_argument("--at-once", type=int, default=2, help="so many faults are played at the same time, each alone")
    return parser.parse_args()


def _play(options: argparse.Namespace) -> int:
    """One row, as a process of its own: what it counted is its last word."""
    (row,) = (row for row in ROWS if row.name in options.row)
    try:
        found = asyncio.run(play(row, options.seed, scale=options.scale, keep=options.keep))
    except CannotPlay as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_PLAY
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    rows = [row for row in ROWS if not options.row or any(part in row.name for part in options.row)]
    whole = len(rows) == len(ROWS) and options.scale == 1.0
    command = [f"--seed={options.seed}", f"--scale={options.scale}"]
    command += [f"--keep={options.keep.resolve()}"] if options.keep else []
    run = Run(rows, command, at_once=options.at_once, progress=Progress(len(rows)))
    told = asyncio.run(run.play_all())
    found = {"seed": options.seed, **told}
    if not whole:
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found["rows"])
    elif not run.failed:
        fresh = RAW.with_suffix(".new")
        fresh.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(fresh, RAW)
    sys.stderr.write(shown(found, run.failed))
    return int(bool(run.failed) or any(_bad(row) for row in found["rows"]))


def _bad(found: Mapping[str, Any]) -> bool:
    return bool(found["lost"] or found["doubled"] or few_ran(found))


if __name__ == "__main__":
    sys.exit(main())
