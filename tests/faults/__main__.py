"""`python -m tests.faults` plays every fault and writes the raw results; `table` writes `docs/faults.md` from them."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.play import play
from tests.faults.report import table
from tests.faults.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
RAW = Path(__file__).parent / "results.json"
DOCUMENT = ROOT / "docs" / "faults.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--row", action="append", help="only faults whose name holds this; the results are not kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="the share of items and kills that is played")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which then stay")
    options = parser.parse_args()
    if options.what == "run":
        return _run(options)
    DOCUMENT.write_text(table(json.loads(RAW.read_text())), encoding="utf-8")
    return 0


def _run(options: argparse.Namespace) -> int:
    rows = [row for row in ROWS if not options.row or any(part in row.name for part in options.row)]
    results: list[dict[str, Any]] = []
    for row in rows:
        found = asyncio.run(play(row, options.seed, scale=options.scale, keep=options.keep))
        results.append(found)
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    if not options.row:
        told = {"at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "seed": options.seed, "rows": results}
        RAW.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(each["lost"] or each["doubled"] for each in results))


if __name__ == "__main__":
    sys.exit(main())
