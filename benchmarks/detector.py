"""What it costs to look at a machine with eight GPUs, and to say that it is alive.

`python -m benchmarks.detector [RUNS]`: on a simulated driver that shows eight H100 (built with gcc on demand). Medians
of RUNS (5): the time of one detection of the GPUs in a detector that runs, and the processor time of one heartbeat,
its child process for the driver included. Exits 1 when a limit is missed.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from libs.hardware.inspector import Inspector
from libs.hardware.nvml_helper import NvmlHelper
from tests.nvml import machines
from tests.nvml.simulator import Simulator, build

LIMITS = {"detection_ms": 50.0, "heartbeat_cpu_ms": 5.0}
BEATS = 50


async def measure(runs: int, directory: Path) -> dict[str, list[float]]:
    simulator = Simulator(build(directory), directory / "machine.txt")
    simulator.show(machines.H100_X8)
    inspector = Inspector(folder=directory, helper=NvmlHelper(environment=simulator.environment, answer_seconds=20))
    try:
        assert len((await inspector.inventory()).gpus) == 8
        return {
            "detection_ms": [await _detection(inspector) for _ in range(runs)],
            "heartbeat_cpu_ms": [await _heartbeats(inspector) for _ in range(runs)],
        }
    finally:
        await inspector.close()


async def _detection(inspector: Inspector) -> float:
    began = time.perf_counter()
    assert len((await inspector.graphics()).gpus) == 8
    return 1000 * (time.perf_counter() - began)


async def _heartbeats(inspector: Inspector) -> float:
    """Of many, because the processor's time is told in hundredths of a second."""
    before = _used()
    for _ in range(BEATS):
        assert len((await inspector.pulse(threads=8)).graphics.gpus) == 8
    return 1000 * (_used() - before) / BEATS


def _used() -> float:
    """Processor seconds of this process and its children."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as directory:
        measured = asyncio.run(measure(runs, Path(directory)))
    missed = 0
    print(f"load average {os.getloadavg()[0]:.2f}, {runs} runs")
    for name, values in measured.items():
        median, limit = statistics.median(values), LIMITS[name]
        missed += median > limit
        spread = f"({min(values):.2f} … {max(values):.2f})"
        print(f"{name:<18} median {median:7.2f}  {spread}  limit {limit:g}, ratio {median / limit:.2f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
