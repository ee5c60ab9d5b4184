"""Work marshaling as a process of its own that can be killed, and a worker that knows nothing but the contracts."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.node_registry import WORKLOAD, NodeWorkload
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    COMPLETED,
    PROGRESS,
    STOP,
    Assignment,
    AssignmentAnswer,
    AssignmentAnswers,
    Assignments,
    AttemptProgress,
    AttemptsStopped,
    StopAttempts,
    WorkCompleted,
    WorkProgress,
)
from tests.archive_servers import postgres, postgresql, server, sqlite, supabase
from tests.nats_cluster import NatsCluster
from tests.nats_process import NatsProcess
from tools.free_ports import free_port

__all__ = ["postgres", "postgresql", "server", "sqlite", "supabase"]

NODE = "worker"
READY_SECONDS = 20


@dataclass
class Marshaling:
    """`start` and `kill` as often as a test likes."""

    environment: dict[str, str]
    output: Path
    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("ab") as out:
            command = [sys.executable, "-m", "services.work_marshaling"]
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def ready(self) -> None:
        async def look() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.output.read_text()
            try:
                return (await self.client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(look, READY_SECONDS)

    async def __aenter__(self) -> "Marshaling":
        self.client = httpx.AsyncClient(base_url=self.url, timeout=30)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.kill()  # first: a halted one answers nobody
        await self.client.aclose()

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def role(self) -> str:
        """`leader`, or what readiness says instead."""
        told: str = (await self.client.get("/readyz")).json()["checks"].get("leader", "starting")
        return "leader" if told == "ok" else told

    async def leads(self) -> bool:
        return await self.role() == "leader"

    async def ask(self, method: str, path: str, **fields: Any) -> httpx.Response:
        """Again until somebody is there: a client that does not give up."""
        found: list[httpx.Response] = []

        async def look() -> bool:
            try:
                answer = await self.client.request(method, path, **fields)
            except httpx.TransportError:
                return False
            found.append(answer)
            return answer.status_code != 503

        await eventually(look, READY_SECONDS)
        return found[-1]

    async def totals(self) -> dict[str, int]:
        told: dict[str, int] = (await self.ask("GET", "/api/v1/stats")).json()["totals"]
        return told


async def eventually(look: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await look():
                return
            await asyncio.sleep(0.05)


async def submit_all(marshaling: Marshaling, items: int) -> dict[str, int]:
    """By the REST door, again and again with the same ids, as a careful client does. Returns the receipts."""
    receipts: dict[str, int] = {}
    for first in range(0, items, 50):
        wanted = range(first, min(items, first + 50))
        batch = [{"work_id": f"item-{number}", "work_type": "echo", "payload": {"number": number}} for number in wanted]
        while True:
            answer = await marshaling.ask("POST", "/api/v1/work/submit-batch", json={"items": batch})
            accepted = [each["accepted"] for each in answer.json()["answers"]]
            if all(accepted):
                break
        receipts |= {each["work_id"]: number for each, number in zip(accepted, wanted, strict=True)}
        await asyncio.sleep(0.02)
    return receipts


async def done(marshaling: Marshaling, count: int) -> bool:
    return (await marshaling.totals()).get("completed", 0) >= count


@asynccontextmanager
async def submitting_all(marshaling: Marshaling, items: int) -> AsyncIterator["asyncio.Task[dict[str, int]]"]:
    """`submit_all` meanwhile. It ends with the block, also with one that failed."""
    submitting = asyncio.create_task(submit_all(marshaling, items))
    try:
        yield submitting
    finally:
        submitting.cancel()
        await asyncio.wait([submitting], timeout=READY_SECONDS)


@dataclass
class Worker:
    """Runs what it is given for a moment and completes it. `runs` counts how often each item was begun."""

    bus: Bus
    chance: random.Random
    slots: int = 150
    runs: Counter[str] = field(default_factory=Counter)
    known: dict[str, Assignment] = field(default_factory=dict)
    running: dict[str, Assignment] = field(default_factory=dict)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    seconds: tuple[float, float] = (0.05, 0.6)

    async def open(self) -> None:
        await self.bus.serve(ASSIGN, self._assign, node_id=NODE)
        await self.bus.serve(STOP, self._stop, node_id=NODE)
        self._own(self._tell())

    async def close(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _assign(self, asked: Assignments) -> AssignmentAnswers:
        answers = []
        for each in asked.assignments:
            token = each.attempt_token or ""
            if token not in self.known:
                self.known[token] = self.running[token] = each
                self._own(self._work(each))
            answers.append(AssignmentAnswer(attempt_token=token, accepted=True))
        return AssignmentAnswers(boot_id="b1", answers=tuple(answers))

    async def _stop(self, asked: StopAttempts) -> AttemptsStopped:
        return AttemptsStopped(stopped=(), unknown=asked.attempt_tokens)

    async def _work(self, given: Assignment) -> None:
        self.runs[given.work_id] += 1
        await asyncio.sleep(self.chance.uniform(*self.seconds))
        told = WorkCompleted(
            work_id=given.work_id, attempt_token=given.attempt_token, node_id=NODE, result={"echo": given.payload}
        )
        await self.bus.append(COMPLETED, told, message_id=given.attempt_token, timeout=30)
        self.running.pop(given.attempt_token or "")

    async def _tell(self) -> None:
        while True:
            now = SystemClock().now()
            told = NodeWorkload(
                node_id=NODE, boot_id="b1", at=now, slots=self.slots, free_slots=self.slots, work_types=("echo",)
            )
            await self.bus.publish(WORKLOAD, told)
            attempts = tuple(
                AttemptProgress(attempt_token=token, work_id=given.work_id) for token, given in self.running.items()
            )
            await self.bus.publish(PROGRESS, WorkProgress(node_id=NODE, boot_id="b1", at=now, attempts=attempts))
            await asyncio.sleep(0.3)

    def _own(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def instance(nats: NatsProcess | NatsCluster, folder: Path, name: str) -> Marshaling:
    port = free_port()
    environment = {
        **os.environ,
        "NATS_URL": nats.url,
        "MESH_DATA_DIR": str(folder / "data"),
        "WORK_MARSHALING_PORT": str(port),
        "WORK_RETRY_DELAY": "0.5",
        "WORK_UPKEEP_SECONDS": "1",
        "WORK_CHECKPOINT_RECORDS": "200",
    }
    return Marshaling(environment, folder / f"{name}.log", f"http://127.0.0.1:{port}")


@pytest.fixture
async def marshaling(nats: NatsProcess, tmp_path: Path) -> AsyncIterator[Marshaling]:
    async with instance(nats, tmp_path, "marshaling") as made:
        yield made


@pytest.fixture
async def second(nats: NatsProcess, tmp_path: Path) -> AsyncIterator[Marshaling]:
    """Another instance, not started yet."""
    async with instance(nats, tmp_path, "second") as made:
        yield made


@pytest.fixture
async def bus(nats: NatsProcess) -> AsyncIterator[Bus]:
    async with connect(nats.url, name="test") as transport:
        yield Bus(transport, name="test", observer=SilentObserver(), clock=SystemClock())


@pytest.fixture
async def worker(bus: Bus) -> AsyncIterator[Worker]:
    working = Worker(bus, random.Random(7))
    yield working
    await working.close()
