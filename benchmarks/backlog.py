"""What a long queue costs: memory, assignments per second, a restart, a take-over.

`python -m benchmarks.backlog [ITEMS]`: on a nats-server of its own that syncs every write, ITEMS (100,000) no-op items
with a payload of 300 bytes are left pending while one agent is given 5,000 others; the same with 1,000 pending. With
the many, work marshaling is then killed and started again, and killed while a second one stands by.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.queue import NODE, NoopAgent, announce, ready, submit
from libs.common.bus.bus import Bus
from libs.common.bus.nats.server import ServerOptions, nats_server
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.work_marshaling import ASSIGN, AssignmentAnswers, Assignments
from libs.common.kit.runner import run_on_uvloop
from tools.free_ports import free_port

FEW = 1_000
GIVEN = 5_000
REST_PERCENT = 5.0
MIB = 1024 * 1024


class HungryAgent(NoopAgent):
    """Takes so many and no more, and remembers when it had them."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.taken = 0
        self.full = asyncio.Event()

    async def assign(self, asked: Assignments) -> AssignmentAnswers:
        self.taken += len(asked.assignments)
        if self.taken >= GIVEN:
            self.full.set()
        return await super().assign(asked)


@dataclass
class Marshaling:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def leads(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            while True:
                try:
                    if (await client.get("/readyz")).json()["checks"].get("leader") == "ok":
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def at_rest(self) -> None:
        """So many submissions may have made a checkpoint due: it is another matter, and rare."""
        while await asyncio.to_thread(psutil.Process(self.process.pid).cpu_percent, 1.0) > REST_PERCENT:
            pass

    def mib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / MIB


@contextmanager
def marshaling(nats_url: str, directory: Path) -> Iterator[Marshaling]:
    port = free_port()
    settings = {"NATS_URL": nats_url, "MESH_DATA_DIR": str(directory / f"{port}"), "WORK_MARSHALING_PORT": str(port)}
    with (directory / f"{port}.log").open("wb") as log:
        command = [sys.executable, "-m", "services.work_marshaling"]
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    started = Marshaling(f"http://127.0.0.1:{port}", process)
    try:
        yield started
    finally:
        started.kill()


async def measure(pending: int, directory: Path, *, kills: bool) -> dict[str, float]:
    async with nats_server(ServerOptions(directory=directory / "nats", port=free_port())) as server:
        with ExitStack() as running:
            first = running.enter_context(marshaling(server.url, directory))
            await first.leads()
            async with httpx.AsyncClient(base_url=first.url, timeout=60) as client:
                await ready(client)
                await submit(pending + GIVEN, client)
                await first.at_rest()
            found = {"assigned per second": await _given(server.url), "memory in MiB": first.mib()}
            if kills:
                first.kill()
                started = time.perf_counter()
                again = running.enter_context(marshaling(server.url, directory))
                await again.leads()
                found["restart in seconds"] = time.perf_counter() - started
                found["... of the processor"] = sum(psutil.Process(again.process.pid).cpu_times()[:2])
                found["memory after it in MiB"] = again.mib()
                found["take-over in seconds"] = await _taken_over(again, server.url, directory, running)
            return found


async def _given(url: str) -> float:
    async with connect(url, name="bench") as transport:
        bus = Bus(transport, name="bench", observer=SilentObserver(), clock=SystemClock())
        agent = HungryAgent(bus)
        await bus.serve(ASSIGN, agent.assign, node_id=NODE)
        reporters = [asyncio.create_task(agent.report()) for _ in range(64)]
        started = time.perf_counter()
        await announce(bus)
        await agent.full.wait()
        seconds = time.perf_counter() - started
        for task in reporters:
            task.cancel()
        await asyncio.gather(*reporters, return_exceptions=True)
        return GIVEN / seconds


async def _taken_over(leader: Marshaling, url: str, directory: Path, running: ExitStack) -> float:
    standby = running.enter_context(marshaling(url, directory))
    async with httpx.AsyncClient(base_url=standby.url, timeout=60) as client:
        await ready(client)
    leader.kill()
    killed = time.perf_counter()
    await standby.leads()
    return time.perf_counter() - killed


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rates = {}
    for pending in (FEW, many):
        with tempfile.TemporaryDirectory() as directory:
            found = run_on_uvloop(measure(pending, Path(directory), kills=pending == many))
        rates[pending] = found["assigned per second"]
        for name, value in found.items():
            print(f"{pending:>9,} pending: {name:<24} {value:10.1f}", flush=True)
    print(f"ratio of the rates, {many:,} to {FEW:,} pending: {rates[many] / rates[FEW]:.2f}")


if __name__ == "__main__":
    main()
