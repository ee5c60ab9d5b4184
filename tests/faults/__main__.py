"""`python -m tests.faults` plays every fault and writes the raw results; `table` writes `docs/faults.md` from them."""

import argparse
import asyncio
import fcntl
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.faults.play import play
from tests.faults.report import table
from tests.faults.rows import ROWS
from tests.faults.stage import CannotPlay

ROOT = Path(__file__).resolve().parents[2]
RAW = Path(__file__).parent / "results.json"
DOCUMENT = ROOT / "docs" / "faults.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--row", action="append", help="only faults whose name holds this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="the share of items and kills; results are kept of 1 only"
    )
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which then stay")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: the processes of a row must not outlive it
    if options.what == "run":
        return _run(options)
    DOCUMENT.write_text(table(json.loads(RAW.read_text())), encoding="utf-8")
    return 0


def _run(options: argparse.Namespace) -> int:
    """Every row is a mesh of its own; what is played at full scale takes its place among the raw results at once."""
    rows = [row for row in ROWS if not options.row or any(part in row.name for part in options.row)]
    bad = 0
    for row in rows:
        try:
            found = asyncio.run(play(row, options.seed, scale=options.scale, keep=options.keep))
        except CannotPlay as error:
            sys.stderr.write(f"{row.name} is left out: {error}\n")
            continue
        bad += bool(found["lost"] or found["doubled"])
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        if options.scale == 1.0:
            _keep(found)
    return int(bad > 0)


def _keep(found: dict[str, Any]) -> None:
    """Some rows may be played beside others, by a program of their own."""
    with RAW.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        told = json.loads(file.read() or "[]")
        by_name = {each["fault"]: each for each in (*told, found)}
        kept = [by_name[row.name] for row in ROWS if row.name in by_name]
        file.truncate(0)
        file.write(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
