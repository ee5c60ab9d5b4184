"""What happens to a GPU is announced with the next heartbeat, by the real process over a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest

from libs.common.contracts.node_registry import ANNOUNCE, HEARTBEAT
from tests.mesh_process import mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator


class Heard:
    """Announcements and heartbeats in the order in which they came."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def note(self, message: Any) -> None:
        await self.messages.put((message.subject, json.loads(message.data)))

    async def announcement(self) -> tuple[dict[str, Any], int]:
        """The next one, and how many heartbeats came before it."""
        beats = 0
        while True:
            subject, told = await asyncio.wait_for(self.messages.get(), 20)
            if subject == ANNOUNCE.subject:
                return told, beats
            beats += 1

    async def beats(self, count: int) -> list[str]:
        """The subjects of all that comes until so many heartbeats came."""
        subjects: list[str] = []
        while subjects.count(HEARTBEAT.subject) < count:
            subjects.append((await asyncio.wait_for(self.messages.get(), 20))[0])
        return subjects


@pytest.fixture
async def heard(shared_nats: NatsProcess) -> AsyncIterator[Heard]:
    heard = Heard()
    client = await nats.connect(shared_nats.url)
    for topic in (ANNOUNCE, HEARTBEAT):
        await client.subscribe(topic.subject, cb=heard.note)
    await client.flush()
    yield heard
    await client.close()


def health(told: dict[str, Any]) -> list[str | None]:
    return [gpu["problem"] for gpu in told["inventory"]["gpus"]]


@pytest.mark.parametrize(
    ("after", "reason"),
    [(machines.LOST, "GPU is lost"), (machines.FATAL_XID, "Xid 79: GPU has fallen off the bus")],
)
async def test_a_broken_gpu_is_announced_with_the_next_heartbeat(
    tmp_path: Path, shared_nats: NatsProcess, heard: Heard, simulator: Simulator, after: Machine, reason: str
):
    simulator.show(machines.A100_X4)
    settings = {**simulator.settings, "NATS_URL": shared_nats.url, "RESOURCE_DETECTOR_HEARTBEAT_SECONDS": "1"}
    with mesh_process(tmp_path / "data", **settings) as mesh:
        mesh.start(("-m", "services.resource_detector"))
        told, _ = await heard.announcement()
        while len(told["inventory"]["gpus"]) < 4:
            told, _ = await heard.announcement()
        moving = machines.A100_X4.changed(0, memory=(81920, 777, 594), temperature=66)
        simulator.show(moving)
        quiet = await heard.beats(3)
        simulator.show(after)
        told, beats = await heard.announcement()
        assert await asyncio.to_thread(mesh.stop) == 0

    assert ANNOUNCE.subject not in quiet
    assert [problem for problem in health(told) if problem] == [reason]
    assert beats <= 2  # one may have been on its way when it broke


async def test_a_gpu_that_is_divided_is_announced_with_the_next_heartbeat(
    tmp_path: Path, shared_nats: NatsProcess, heard: Heard, simulator: Simulator
):
    whole = Machine(gpus=tuple(replace(gpu, migs=()) for gpu in machines.A100_MIG.gpus))
    simulator.show(whole)
    settings = {**simulator.settings, "NATS_URL": shared_nats.url, "RESOURCE_DETECTOR_HEARTBEAT_SECONDS": "1"}
    with mesh_process(tmp_path / "data", **settings) as mesh:
        mesh.start(("-m", "services.resource_detector"))
        before, _ = await heard.announcement()
        simulator.show(machines.A100_MIG)
        after, beats = await heard.announcement()

    assert before["inventory"]["gpus"][0]["mig_devices"] == []
    assert len(after["inventory"]["gpus"][0]["mig_devices"]) == 2
    assert beats <= 2
