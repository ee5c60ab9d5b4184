"""How fast the queue is on three nats-servers that keep three copies of everything, each syncing every write.

`python -m benchmarks.cluster [ITEMS] [RUNS] [--json FILE]`: as `benchmarks.queue`, with 10,000 items and three runs, on
a cluster on loopback: all three servers share this machine's processors and disk with the queue, which three machines
would not. `--json` also writes the figures of every run.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.queue import FIGURES, measure_on
from libs.common.kit.runner import run_on_uvloop
from tests.nats_cluster import SERVERS, nats_cluster

LEAST_PER_SECOND = 5000.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="?", type=int, default=10_000)
    parser.add_argument("runs", nargs="?", type=int, default=3)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    load = os.getloadavg()[0]
    measured = [_measured(wanted.items) for _ in range(wanted.runs)]
    medians = [statistics.median(values) for values in zip(*measured, strict=True)]
    for name, median, values in zip(FIGURES, medians, zip(*measured, strict=True), strict=True):
        limit = f"  limit {LEAST_PER_SECOND:.0f}" if name.endswith("per second") else ""
        print(f"{name:<22} median {median:10.1f}  ({min(values):.1f} … {max(values):.1f}){limit}")
    if wanted.json is not None:
        told = {
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "load_before": round(load, 1),
            "processors": os.cpu_count(),
            "servers": SERVERS,
            "items": wanted.items,
            "runs": [dict(zip(FIGURES, run, strict=True)) for run in measured],
        }
        wanted.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(min(medians[:2]) < LEAST_PER_SECOND)


def _measured(items: int) -> tuple[float, float, float, float]:
    with nats_cluster() as cluster, tempfile.TemporaryDirectory() as directory:
        return run_on_uvloop(measure_on(cluster.url, items, Path(directory), replicas=SERVERS))


if __name__ == "__main__":
    raise SystemExit(main())
