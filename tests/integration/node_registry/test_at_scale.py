"""Many machines, and questions without pause: what is believed stays right."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.unit.house_rules import ROOT

NODES = 300
INTERVAL = 1.0
SUSPECT_SECONDS = 3 * INTERVAL
ASKERS = 4
PLACEMENT = {"requires_gpu": True, "min_tier": "GPU_PEER", "min_gpu_count": 4, "sort": "-free_vram_mb", "limit": 20}
NONE_FITS = {"min_free_vram_mb": 500_000, "explain": True}


@pytest.fixture
def registry(tmp_path: Path, nats: NatsProcess) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path / "registry", NATS_URL=nats.url, NODE_REGISTRY_WATCH_SECONDS="0.1") as mesh:
        yield mesh.start(("-m", "services.node_registry")).wait_ready(["node_registry"])


@contextmanager
def crowd(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.simulated_nodes", url, str(NODES), str(INTERVAL)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as simulated:
        try:
            yield simulated
        finally:
            simulated.terminate()


async def everybody_beats(registry: MeshProcess) -> None:
    async with (
        httpx.AsyncClient(base_url=f"{registry.url('node_registry')}/api/v1", timeout=20) as door,
        asyncio.timeout(30),
    ):
        nodes: list[dict[str, Any]] = []
        while len(nodes) < NODES or not all(node["gpus"] for node in nodes):
            await asyncio.sleep(0.1)
            nodes = (await door.get("/nodes", params={"limit": 1000})).raise_for_status().json()["nodes"]


async def ask(client: Client, query: dict[str, Any]) -> dict[str, Any]:
    answer = await client.request("compute.nodes.query.v1", json.dumps(query).encode(), timeout=20)
    told: dict[str, Any] = json.loads(answer.data)
    assert "error" not in told, told
    return told


def check(placed: dict[str, Any], unplaced: dict[str, Any]) -> None:
    free = [max(gpu["vram_free_mb"] for gpu in node["gpus"]) for node in placed["nodes"]]
    assert (placed["total"], len(free)) == (NODES, PLACEMENT["limit"])
    assert all(first >= second for first, second in pairwise(free))
    assert (unplaced["total"], len(unplaced["excluded"])) == (0, NODES)


async def ask_without_pause(url: str, until: float) -> int:
    asked = 0
    async with await nats.connect(url) as client:
        while time.monotonic() < until:
            check(await ask(client, PLACEMENT), await ask(client, NONE_FITS))
            asked += 1
    return asked


async def test_while_questions_never_pause_answers_are_right_and_nobody_is_called_silent(
    nats_url: str, registry: MeshProcess
):
    silent: list[dict[str, Any]] = []

    async def hear(message: Msg) -> None:
        told = json.loads(message.data)
        silent.extend([told] if told["state"] != "ONLINE" else [])

    with crowd(nats_url) as simulated:
        async with await nats.connect(nats_url) as ear:
            await ear.subscribe("compute.nodes.status.v1", cb=hear)
            await everybody_beats(registry)
            until = time.monotonic() + SUSPECT_SECONDS + 2 * INTERVAL
            asked = await asyncio.gather(*(ask_without_pause(nats_url, until) for _ in range(ASKERS)))
        out, _ = await asyncio.to_thread(simulated.communicate)

    assert all(asked)
    assert silent == [], f"{out.strip()} s: by so much the latest heartbeat was late itself"


@pytest.fixture
def nats_url(nats: NatsProcess) -> str:
    return nats.url
