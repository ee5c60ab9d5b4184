"""How fast the queue is with the whole life of an item: durable submit, assignment to a node, token, outcome.

`python -m benchmarks.queue [ITEMS] [RUNS]`: for each of RUNS (3), on a nats-server of its own that syncs every write:
ITEMS (10,000) no-op items with a payload of 300 bytes are submitted in batches, then drained by one agent; and 200
single items are followed from submission to result at low load.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from libs.common.bus.bus import Bus
from libs.common.bus.nats.server import ServerOptions, nats_server
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.node_registry import WORKLOAD, NodeWorkload
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    COMPLETED,
    AssignmentAnswer,
    AssignmentAnswers,
    Assignments,
    WorkCompleted,
)
from libs.common.kit.runner import run_on_uvloop
from tools.free_ports import free_port

NODE = "bench"
SLOTS = 512
PAYLOAD = {"text": "x" * 288}
BATCH = 2_000


class NoopAgent:
    """Accepts everything and completes it at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._outcomes: asyncio.Queue[WorkCompleted] = asyncio.Queue()
        self.done = 0

    async def assign(self, asked: Assignments) -> AssignmentAnswers:
        for each in asked.assignments:
            self._outcomes.put_nowait(
                WorkCompleted.model_construct(
                    work_id=each.work_id,
                    attempt_token=each.attempt_token,
                    node_id=NODE,
                    result=None,
                    started_at=None,
                    ended_at=None,
                )
            )
        accepted = (
            AssignmentAnswer.model_construct(attempt_token=each.attempt_token or "", accepted=True, reason="")
            for each in asked.assignments
        )
        return AssignmentAnswers.model_construct(boot_id="b", answers=tuple(accepted))

    async def report(self) -> None:
        while True:
            outcome = await self._outcomes.get()
            await self._bus.append(COMPLETED, outcome, message_id=outcome.attempt_token)
            self.done += 1


Measured = tuple[float, float, float, float]
"""Submits per second, drained per second, and the median and 99th percentile of the latency in milliseconds."""
FIGURES = ("submitted per second", "drained per second", "latency p50 ms", "latency p99 ms")


async def measure(items: int, directory: Path) -> Measured:
    async with nats_server(ServerOptions(directory=directory / "nats", port=free_port())) as server:
        return await measure_on(server.url, items, directory)


async def measure_on(url: str, items: int, directory: Path, *, replicas: int = 1) -> Measured:
    port = free_port()
    environment = {
        **os.environ,
        "NATS_URL": url,
        "STREAM_REPLICAS": str(replicas),
        "MESH_DATA_DIR": str(directory / "data"),
        "WORK_MARSHALING_PORT": str(port),
    }
    with (directory / "marshaling.log").open("wb") as log:
        command = [sys.executable, "-m", "services.work_marshaling"]
        marshaling = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        async with (
            connect(url, name="bench") as transport,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            bus = Bus(transport, name="bench", observer=SilentObserver(), clock=SystemClock())
            return await _run(items, bus, client)
    finally:
        marshaling.terminate()
        await marshaling.wait()


async def _run(items: int, bus: Bus, client: httpx.AsyncClient) -> Measured:
    await ready(client)
    agent = NoopAgent(bus)
    await bus.serve(ASSIGN, agent.assign, node_id=NODE)
    reporters = [asyncio.create_task(agent.report()) for _ in range(64)]
    try:
        submitted = await submit(items, client)
        drained = await _drain(items, bus, client, agent)
        return submitted, drained, *await _latency(client)
    finally:
        for task in reporters:
            task.cancel()
        await asyncio.gather(*reporters, return_exceptions=True)


async def submit(items: int, client: httpx.AsyncClient) -> float:
    started = time.perf_counter()
    for first in range(0, items, BATCH):
        count = min(BATCH, items - first)
        batch = [{"work_type": "noop", "payload": PAYLOAD}] * count
        answer = await client.post("/api/v1/work/submit-batch", json={"items": batch})
        assert answer.json()["accepted"] == count, answer.text[:500]
    return items / (time.perf_counter() - started)


async def _drain(items: int, bus: Bus, client: httpx.AsyncClient, agent: NoopAgent) -> float:
    started = time.perf_counter()
    await announce(bus)
    while True:
        if (await client.get("/api/v1/stats")).json()["totals"].get("completed", 0) >= items:
            break
        await asyncio.sleep(0.05)
    assert agent.done == items, f"{agent.done} outcomes for {items} items"
    return items / (time.perf_counter() - started)


async def _latency(client: httpx.AsyncClient) -> tuple[float, float]:
    seconds: list[float] = []
    for _ in range(200):
        started = time.perf_counter()
        accepted = await client.post("/api/v1/work/submit", json={"work_type": "noop", "payload": PAYLOAD})
        path = f"/api/v1/work/{accepted.json()['work_id']}/result"
        assert (await client.get(path, params={"wait_seconds": 10})).status_code == 200
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    return 1000 * statistics.median(seconds), 1000 * seconds[int(len(seconds) * 0.99)]


async def announce(bus: Bus) -> None:
    workload = NodeWorkload(
        node_id=NODE, boot_id="b", at=SystemClock().now(), slots=SLOTS, free_slots=SLOTS, work_types=("noop",)
    )
    await bus.publish(WORKLOAD, workload)


async def ready(client: httpx.AsyncClient) -> None:
    until = time.perf_counter() + 20
    while time.perf_counter() < until:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise RuntimeError("work marshaling did not become ready")


def main() -> None:
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    measured = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            measured.append(run_on_uvloop(measure(items, Path(directory))))
    for name, values in zip(FIGURES, zip(*measured, strict=True), strict=True):
        print(f"{name:<22} median {statistics.median(values):10.1f}  ({min(values):.1f} … {max(values):.1f})")


if __name__ == "__main__":
    main()
