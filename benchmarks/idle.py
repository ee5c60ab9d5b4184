"""What the whole mesh costs while nothing happens: memory, CPU, and how long a warm start takes.

`python -m benchmarks.idle [RUNS] [SECONDS]`: medians over RUNS starts (5), each watched for SECONDS (20) after all
services are ready. Starts everything on free ports with a data directory of its own.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools.free_ports import free_ports

SERVICES = (
    "node_registry",
    "resource_detector",
    "vllm_orchestrator",
    "work_marshaling",
    "gpu_orchestrator",
    "benchmark_runner",
    "node_agent",
)
LIMITS = {"start_seconds": 5.0, "memory_mb": 250.0, "cpu_percent": 3.0}
START_PATIENCE_SECONDS = 60.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One start. `nats_…` is the nats-server beside us, which the limits do not count."""

    start_seconds: float
    memory_mb: float
    cpu_percent: float
    nats_memory_mb: float
    nats_cpu_percent: float


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), seconds=0.0)  # the first start is a cold one
        measured = [measure(Path(directory), seconds) for _ in range(runs)]
    good = True
    for name in ("start_seconds", "memory_mb", "cpu_percent", "nats_memory_mb", "nats_cpu_percent"):
        values = [getattr(run, name) for run in measured]
        median, limit = statistics.median(values), LIMITS.get(name)
        good = good and (limit is None or median <= limit)
        verdict = "" if limit is None else f"  limit {limit:g}: {'ok' if median <= limit else 'MISSED'}"
        print(f"{name:<18} median {median:7.2f}  ({min(values):.2f} … {max(values):.2f}){verdict}")
    return 0 if good else 1


def measure(directory: Path, seconds: float) -> Run:
    """Start, wait until every `/readyz` is green, watch for `seconds`, stop."""
    nats_port, *ports = free_ports(len(SERVICES) + 1)
    environment = {
        **os.environ,
        "MESH_DATA_DIR": str(directory / "data"),
        "GPU_ORCHESTRATOR_LOCK": str(directory / "machine.lock"),
        "NATS_PORT": str(nats_port),
        **{f"{service.upper()}_PORT": str(port) for service, port in zip(SERVICES, ports, strict=True)},
    }
    started = time.perf_counter()
    with (directory / "mesh.log").open("wb") as log:
        mesh = subprocess.Popen([sys.executable, "-m", "services"], env=environment, stdout=log, stderr=log)
    try:
        for port in ports:
            _wait_ready(mesh, port, directory / "mesh.log")
        start_seconds = time.perf_counter() - started
        return _watch(mesh.pid, seconds, start_seconds)
    finally:
        mesh.send_signal(signal.SIGINT)
        mesh.wait(60)


def _watch(pid: int, seconds: float, start_seconds: float) -> Run:
    process = psutil.Process(pid)
    nats = next(child for child in process.children() if child.name() == "nats-server")
    time.sleep(seconds / 10)  # what the start itself still does is not idleness
    before, nats_before, at = _cpu(process), _cpu(nats), time.perf_counter()
    time.sleep(seconds)
    passed = max(time.perf_counter() - at, 1e-9)
    return Run(
        start_seconds=start_seconds,
        memory_mb=process.memory_info().rss / MIB,
        cpu_percent=100 * (_cpu(process) - before) / passed,
        nats_memory_mb=nats.memory_info().rss / MIB,
        nats_cpu_percent=100 * (_cpu(nats) - nats_before) / passed,
    )


def _wait_ready(mesh: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.perf_counter() + START_PATIENCE_SECONDS
    while time.perf_counter() < until and mesh.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.02)
    raise SystemExit(f"the mesh did not become ready:\n{log.read_text()[-4000:]}")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    sys.exit(main())
