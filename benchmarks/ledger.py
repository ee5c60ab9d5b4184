"""What it costs to reserve GPU memory, and whether more is ever given than there is.

`python -m benchmarks.ledger [--seconds 60] [--reservers 100] [--json FILE]`: a nats-server, a GPU orchestrator on a
simulated driver with eight H100 and forty processes, and clients that reserve and release, over NATS and over REST.
First each client does so once a second (paced); then all as fast as they are answered (closed). The limits are those of
the paced crowd: a closed one waits for the service's processor, whatever it does, and is told by its rate and by what a
pair costs. A stranger's process grows and shrinks on a GPU all the while. An observer that knows only the driver's
description and what the clients were granted counts over-commits. Prints each figure beside its limit; exits 1 when one
is missed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from benchmarks.registry import report, until_good
from benchmarks.reservers import Ask, Crowd, Observer, over_http, over_nats
from libs.common.bus.nats.server import ServerOptions, nats_server
from libs.common.kit.runner import run_on_uvloop
from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator, build
from tools.free_ports import free_port

TOTAL_MB, DRIVER_MB, PROCESS_MB = 81559, 551, 2000
PROCESSES_PER_GPU, REFRESHES = 5, 50
LIMITS = {
    "nats_paced_p50_ms": 5,
    "nats_paced_p99_ms": 25,
    "rest_paced_p50_ms": 5,
    "rest_paced_p99_ms": 25,
    "over_commits": 0,
    "failed": 0,
    "refresh_ms": 20,
    "idle_cpu_percent": 1,
}


def machine_with(pids: list[int], stranger_mb: int = 0, on: int = 0) -> Machine:
    """Eight H100 with five processes each; a stranger's on one of them uses so much more."""
    gpus = []
    for number, gpu in enumerate(machines.H100_X8.gpus):
        used = [(pid, PROCESS_MB, "c") for pid in pids[number::8]]
        more = [(4_000_000, stranger_mb, "c")] if stranger_mb and number == on else []
        total = sum(mb for _, mb, _ in [*used, *more])
        gpus.append(replace(gpu, memory=(TOTAL_MB, total, DRIVER_MB), processes=(*used, *more)))
    return Machine(gpus=tuple(gpus))


@dataclass
class Stranger:
    """Takes most of a GPU, then leaves it, again and again."""

    simulator: Simulator
    observer: Observer
    pids: list[int]

    async def come_and_go(self) -> None:
        number = 0
        while True:
            taken = 0 if number % 2 else 60_000
            machine = machine_with(self.pids, taken, on=number // 2 % 8)
            # Told first when it leaves, last when it comes: the observer never counts more than is used.
            if not taken:
                self.observer.described(machine)
            self.simulator.show(machine)
            if taken:
                self.observer.described(machine)
            number += 1
            await asyncio.sleep(0.35)


@asynccontextmanager
async def sleepers(count: int) -> AsyncIterator[list[int]]:
    """Processes that are there and do nothing."""
    started = [await asyncio.create_subprocess_exec("sleep", "100000") for _ in range(count)]
    try:
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            await process.wait()


async def measure(seconds: float, reservers: int, directory: Path) -> dict[str, float]:
    simulator = Simulator(build(directory), directory / "machine.txt")
    async with sleepers(8 * PROCESSES_PER_GPU) as pids:
        simulator.show(machine_with(pids))
        port = free_port()
        async with (
            nats_server(ServerOptions(directory=directory / "nats", port=free_port())) as server,
            _orchestrator(directory, server.url, port, simulator) as service,
        ):
            measured = {"idle_cpu_percent": await _idle(service, min(seconds, 30))} | await _refreshes(port, pids)
            observer = Observer(machine_with(pids))
            observer.described(observer.machine)
            stranger = asyncio.create_task(Stranger(simulator, observer, pids).come_and_go())
            try:
                failed = 0.0
                for name, rate in (("paced", 1.0), ("closed", 0.0)):
                    async with over_nats(server.url, "bench") as ask:
                        figures = await _crowd(f"nats_{name}", ask, rate, observer, reservers, seconds, service)
                        failed += figures.pop("failed")
                        measured |= figures
                    async with over_http(port, reservers) as ask:
                        figures = await _crowd(f"rest_{name}", ask, rate, observer, reservers, seconds, service)
                        failed += figures.pop("failed")
                        measured |= figures
            finally:
                stranger.cancel()
            measured |= {"grants_checked": observer.checked, "over_commits": len(observer.over_commits)}
            for line in observer.over_commits[:10]:
                print(line)
    return measured | {"failed": failed}


async def _crowd(
    name: str, ask: Ask, rate: float, observer: Observer, reservers: int, seconds: float, service: psutil.Process
) -> dict[str, float]:
    crowd = Crowd(ask, observer, rate)
    before, began = _used(service), time.monotonic()
    await crowd.run(reservers, seconds)
    took, used = time.monotonic() - began, _used(service) - before
    return {
        f"{name}_p50_ms": statistics.median(crowd.pairs),
        f"{name}_p99_ms": sorted(crowd.pairs)[int(0.99 * len(crowd.pairs))],
        f"{name}_pairs_per_s": len(crowd.pairs) / took,
        f"{name}_refused_per_s": crowd.refused / took,
        f"{name}_cpu_percent": 100 * used / took,
        f"{name}_cpu_ms_per_pair": 1000 * used / len(crowd.pairs),
        "failed": crowd.failed,
    }


@asynccontextmanager
async def _orchestrator(directory: Path, url: str, port: int, simulator: Simulator) -> AsyncIterator[psutil.Process]:
    settings = {
        "NATS_URL": url,
        "MESH_DATA_DIR": str(directory / "data"),
        "GPU_ORCHESTRATOR_LOCK": str(directory / "machine.lock"),
        "GPU_ORCHESTRATOR_PORT": str(port),
        "NODE_ID": "bench",
    }
    with (directory / "orchestrator.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.gpu_orchestrator"),
            env={**simulator.environment, **settings},
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await until_good(http, "/readyz", lambda _: True)
        yield psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _refreshes(port: int, pids: list[int]) -> dict[str, float]:
    """Everything measured and the ledger made of it, as REST tells it, with a reservation for each process."""
    taken = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1/gpu") as http:
        names = [await _committed(http, number % 8, pid) for number, pid in enumerate(pids)]
        for _ in range(REFRESHES):
            began = time.perf_counter()
            states = (await http.get("/states")).raise_for_status().json()["gpus"]
            taken.append(1000 * (time.perf_counter() - began))
            assert [state["ledger"]["ours_mb"] for state in states] == [PROCESSES_PER_GPU * PROCESS_MB] * 8
        for name in names:
            (await http.delete(f"/reservations/{name}")).raise_for_status()
    return {"refresh_ms": statistics.median(taken), "refresh_worst_ms": max(taken)}


async def _committed(http: httpx.AsyncClient, gpu: int, pid: int) -> str:
    asked = {"required_mb": PROCESS_MB, "gpu_indices": [gpu]}
    name = str((await http.post("/reserve", json=asked)).raise_for_status().json()["reservation_id"])
    (await http.post(f"/reservations/{name}/commit", json={"pid": pid})).raise_for_status()
    return name


async def _idle(service: psutil.Process, seconds: float) -> float:
    before, began = _used(service), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (_used(service) - before) / (time.monotonic() - began)


def _used(process: psutil.Process) -> float:
    """Processor seconds, those of its children included."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the ledger of GPU memory.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each crowd")
    parser.add_argument("--reservers", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measured = run_on_uvloop(measure(asked.seconds, asked.reservers, Path(directory)))
    told = {"reservers": asked.reservers, "seconds": asked.seconds, "load_average": os.getloadavg()[0], **measured}
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return report(told, LIMITS)


if __name__ == "__main__":
    sys.exit(main())
