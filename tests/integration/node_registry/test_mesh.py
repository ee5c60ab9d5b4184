"""The registry and detectors as processes of their own, on a real nats-server."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.simulator import Simulator

HEARTBEAT = 0.25
REGISTRY = ("-m", "services.node_registry")
DETECTOR = ("-m", "services.resource_detector")


@contextlib.contextmanager
def service(directory: Path, nats: NatsProcess, program: tuple[str, str], **environment: str) -> Iterator[MeshProcess]:
    settings = {"RESOURCE_DETECTOR_HEARTBEAT_SECONDS": str(HEARTBEAT), "NODE_REGISTRY_WATCH_SECONDS": "0.05"}
    with mesh_process(directory, NATS_URL=nats.url, **(settings | environment)) as mesh:
        mesh.start(program)
        mesh.wait_ready([program[1].removeprefix("services.")])
        yield mesh


@pytest.fixture
def registry(tmp_path: Path, nats: NatsProcess) -> Iterator[MeshProcess]:
    with service(tmp_path / "registry", nats, REGISTRY) as mesh:
        yield mesh


def node(registry: MeshProcess, node_id: str) -> dict[str, Any] | None:
    answer = httpx.get(f"{registry.url('node_registry')}/api/v1/nodes/{node_id}", timeout=10)
    return None if answer.status_code == 404 else answer.raise_for_status().json()


def wait_for(registry: MeshProcess, node_id: str, state: str, *, timeout: float = 20) -> dict[str, Any]:
    until = time.monotonic() + timeout
    while True:
        found = node(registry, node_id)
        if found is not None and found["state"] == state:
            return found
        assert time.monotonic() < until, f"{node_id} was never {state}: {found}\n{registry.output}"
        time.sleep(0.01)


def changes_to(registry: MeshProcess, state: str) -> float:
    page = httpx.get(f"{registry.url('node_registry')}/metrics", timeout=10).text
    wanted = f'mesh_registry_state_changes_total{{state="{state}"}}'
    return next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(wanted)), 0.0)


def test_a_killed_node_is_suspect_and_offline_in_time_and_comes_back(
    tmp_path: Path, nats: NatsProcess, registry: MeshProcess
):
    with service(tmp_path / "a", nats, DETECTOR, NODE_ID="a") as detector:
        wait_for(registry, "a", "ONLINE")
        killed = time.monotonic()
        detector.kill()

        wait_for(registry, "a", "SUSPECT")
        suspect_after = time.monotonic() - killed
        wait_for(registry, "a", "OFFLINE")
        offline_after = time.monotonic() - killed

        assert 2 * HEARTBEAT <= suspect_after <= 3 * HEARTBEAT + 1
        assert 5 * HEARTBEAT <= offline_after <= 6 * HEARTBEAT + 1
        detector.start(DETECTOR)
        assert wait_for(registry, "a", "ONLINE")["state_reason"] == "it restarted"


def test_a_machine_is_listed_to_the_mib_and_found_by_its_gpus(
    tmp_path: Path, nats: NatsProcess, registry: MeshProcess, simulator: Simulator
):
    simulator.show(machines.H100_X8)
    with service(tmp_path / "big", nats, DETECTOR, NODE_ID="big", **simulator.settings):
        found = wait_for(registry, "big", "ONLINE")
        listed = httpx.get(f"{registry.url('node_registry')}/api/v1/nodes").raise_for_status().json()["nodes"]
        query = {"requires_gpu": True, "min_tier": "ai_factory", "online_only": True, "min_gpu_count": 8}
        answer = httpx.post(f"{registry.url('node_registry')}/api/v1/nodes/query", json=query).raise_for_status().json()

    assert [each["inventory"]["gpus"] for each in listed] == [found["inventory"]["gpus"]]
    assert [
        (gpu["vram_total_mb"], gpu["vram_used_mb"], gpu["vram_reserved_mb"]) for gpu in found["inventory"]["gpus"]
    ] == [gpu.memory for gpu in machines.H100_X8.gpus]
    assert all(
        gpu["vram_free_mb"] == gpu["vram_total_mb"] - gpu["vram_used_mb"] - gpu["vram_reserved_mb"]
        for gpu in found["inventory"]["gpus"]
    )
    assert (found["tier"], found["inventory"]["platform"]) == ("AI_FACTORY", "CUDA")
    assert [each["node_id"] for each in answer["nodes"]] == ["big"]


def test_a_gpu_that_is_lost_is_told_within_a_heartbeat(
    tmp_path: Path, nats: NatsProcess, registry: MeshProcess, simulator: Simulator
):
    simulator.show(machines.A100_X4)
    with service(tmp_path / "four", nats, DETECTOR, NODE_ID="four", **simulator.settings):
        wait_for(registry, "four", "ONLINE")
        simulator.show(machines.A100_X4.changed(3, lost=True))
        until = time.monotonic() + HEARTBEAT + 1
        while all(gpu["healthy"] for gpu in (node(registry, "four") or {})["inventory"]["gpus"]):
            assert time.monotonic() < until
            time.sleep(0.01)
        broken = (node(registry, "four") or {})["inventory"]["gpus"][3]

    assert broken["problem"] == "GPU is lost"
    assert broken["uuid"] == machines.uuid(3)


async def test_an_outage_of_nats_declares_nobody_dead(tmp_path: Path, nats: NatsProcess, registry: MeshProcess):
    with service(tmp_path / "a", nats, DETECTOR, NODE_ID="a"):
        await asyncio.to_thread(wait_for, registry, "a", "ONLINE")
        nats.kill()
        await asyncio.sleep(12 * HEARTBEAT)  # what is tested is that time passes
        await asyncio.to_thread(nats.start)
        await asyncio.to_thread(_wait_for_a_beat, registry, "a")

        assert await asyncio.to_thread(changes_to, registry, "SUSPECT") == 0


def test_a_registry_that_was_stopped_declares_nobody_dead(tmp_path: Path, nats: NatsProcess, registry: MeshProcess):
    with service(tmp_path / "a", nats, DETECTOR, NODE_ID="a"):
        wait_for(registry, "a", "ONLINE")
        assert registry.process is not None
        os.kill(registry.process.pid, signal.SIGSTOP)
        time.sleep(12 * HEARTBEAT)  # what is tested is that time passes
        os.kill(registry.process.pid, signal.SIGCONT)
        _wait_for_a_beat(registry, "a")

        assert changes_to(registry, "SUSPECT") == 0


def test_a_registry_that_restarts_knows_everybody_again_at_once(
    tmp_path: Path, nats: NatsProcess, registry: MeshProcess
):
    with service(tmp_path / "a", nats, DETECTOR, NODE_ID="a", RESOURCE_DETECTOR_HEARTBEAT_SECONDS="3600"):
        wait_for(registry, "a", "ONLINE")
        registry.kill()
        registry.start(REGISTRY)
        registry.wait_ready(["node_registry"])

        wait_for(registry, "a", "ONLINE", timeout=5)


def _wait_for_a_beat(registry: MeshProcess, node_id: str) -> None:
    until = time.monotonic() + 10
    while (node(registry, node_id) or {})["last_heartbeat_seconds_ago"] > 2 * HEARTBEAT:
        assert time.monotonic() < until, registry.output
        time.sleep(0.02)
