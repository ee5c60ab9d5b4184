"""The agent as a process of its own, on a real nats-server: killed, started again, stopped."""

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import ASSIGN, Assignment, Assignments, WorkFailed
from libs.common.errors import MeshError
from tests.integration.node_agent.conftest import runs
from tests.integration.node_agent.mesh import NODE, PLACE, function_job, outcomes_in
from tests.nats_process import NatsProcess


@dataclass
class AgentProcess:
    """Started by `agent_process`; `events` are the lines of its log."""

    process: asyncio.subprocess.Process
    port: int
    events: list[dict[str, Any]]

    async def engine(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{self.port}/api/v1/engines")
        found: dict[str, Any] = answer.json()["engines"][0]
        return found

    async def end(self, number: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()


async def start(nats: NatsProcess, folder: Path, **more: str) -> AgentProcess:
    environment: Mapping[str, str] = {
        **os.environ,
        "NATS_URL": nats.url,
        "MESH_DATA_DIR": str(folder),
        "NODE_ID": NODE,
        "NODE_AGENT_PORT": "0",
        "LOG_FORMAT": "json",
        "SHUTDOWN_SECONDS": "5",
        "AGENT_FUNCTIONS": f"append_line={PLACE}:append_line",
        "AGENT_FUNCTION_SLOTS": "50",
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.node_agent"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not any(event["event"] == "ready" for event in events):
            assert process.stdout is not None
            line = await process.stdout.readline()
            assert line, [event["event"] for event in events]
            events.append(json.loads(line))
    port = next(event["port"] for event in events if event["event"] == "service_up")
    return AgentProcess(process, port, events)


@asynccontextmanager
async def agent_process(nats: NatsProcess, folder: Path, **more: str) -> AsyncIterator[AgentProcess]:
    started = await start(nats, folder, **more)
    try:
        yield started
    finally:
        await started.end(signal.SIGTERM)


@asynccontextmanager
async def bus_to(nats: NatsProcess) -> AsyncIterator[Bus]:
    clock = SystemClock()
    async with connect(nats.url, name="test") as transport:
        yield Bus(transport, name="test", observer=SilentObserver(), clock=clock)


async def test_an_agent_that_was_killed_finds_its_engine_again(nats: NatsProcess, tmp_path: Path):
    first = await start(nats, tmp_path)
    before = await first.engine()
    await first.end(signal.SIGKILL)
    assert runs(before["pid"])

    async with agent_process(nats, tmp_path) as second:
        after = await second.engine()

    assert (after["pid"], after["adopted"]) == (before["pid"], True)
    assert not runs(before["pid"])


async def test_an_agent_that_is_told_to_stop_leaves_no_process_behind(nats: NatsProcess, tmp_path: Path):
    started = await start(nats, tmp_path)
    engine = await started.engine()

    status = await started.end(signal.SIGTERM)

    assert status == 0
    assert not runs(engine["pid"])


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_at_any_moment_no_attempt_runs_twice_and_each_ends_with_one_outcome(
    nats: NatsProcess, tmp_path: Path, seed: int
):
    """Everything that was answered `accepted` before a kill has an outcome after it, and only one that counts."""
    chance, lines = random.Random(seed), tmp_path / "lines"
    accepted: set[str] = set()
    async with bus_to(nats) as bus:
        for _ in range(3):
            process = await start(nats, tmp_path, ENGINE="none")
            killing = asyncio.get_running_loop().call_later(
                chance.uniform(0.02, 0.3), process.process.send_signal, signal.SIGKILL
            )
            accepted |= await assigned_until_nobody_answers(bus, lines)
            await process.process.wait()
            killing.cancel()
        async with agent_process(nats, tmp_path, ENGINE="none"):
            outcomes = await outcomes_of(bus, accepted)

    ran = Counter(lines.read_text().splitlines())
    assert len(accepted) > 50
    assert [token for token, times in ran.items() if times > 1] == []
    # The first that is told counts. Who is killed may tell a success again, or not know that it was told.
    assert [told for told in outcomes.values() if len(told) > 1 and told[0] is WorkFailed] == []


async def assigned_until_nobody_answers(bus: Bus, lines: Path) -> set[str]:
    accepted: set[str] = set()
    while True:
        batch = [append_job(lines) for _ in range(10)]
        try:
            answer = await bus.request(
                ASSIGN, Assignments(epoch=1, assignments=tuple(batch)), node_id=NODE, timeout=1.0
            )
        except MeshError:
            return accepted
        accepted |= {each.attempt_token for each in answer.answers if each.accepted}


def append_job(lines: Path) -> Assignment:
    assignment = function_job("append_line")
    arguments = {"file": str(lines), "line": assignment.attempt_token}
    return assignment.model_copy(update={"payload": {"function": "append_line", "arguments": arguments}})


async def outcomes_of(bus: Bus, tokens: set[str]) -> Mapping[str, Sequence[type]]:
    """What was told of each attempt, in order, once something was told of all."""
    found: dict[str, list[type]] = {}
    async with asyncio.timeout(20):
        async for batch in bus.read(WORK_OUT, after=0):
            for told in (told for stored in batch for told in outcomes_in(bus, stored)):
                found.setdefault(told.attempt_token or "", []).append(type(told))
            if tokens <= found.keys():
                return found
    return found
