"""What people and machines without a detector do over REST."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess

PROGRAM = ("-m", "services.node_registry")


@pytest.fixture
def registry(tmp_path: Path, nats: NatsProcess) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path / "registry", NATS_URL=nats.url) as mesh:
        yield mesh.start(PROGRAM).wait_ready(["node_registry"])


@pytest.fixture
def door(registry: MeshProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{registry.url('node_registry')}/api/v1", timeout=20) as client:
        yield client


def test_a_machine_registers_itself_is_found_and_forgotten(door: httpx.Client):
    body = {
        "node_id": "my-submodule-node",
        "hostname": "submodule-host",
        "tier": "GPU_PEER",
        "cpu": {"cores": 8},
        "memory": {"total_mb": 65536},
        "gpus": [{"name": "NVIDIA GeForce RTX 4090", "vram_total_mb": 24564}],
    }
    registered = door.post("/nodes/register", json=body).raise_for_status().json()
    query = {"requires_gpu": True, "min_tier": "gpu_peer", "online_only": True}
    found = door.post("/nodes/query", json=query).raise_for_status().json()
    node = door.get("/nodes/my-submodule-node").raise_for_status().json()
    beat = door.post("/nodes/my-submodule-node/heartbeat", json={"load_ratio": 0.25}).raise_for_status().json()

    assert registered["state"] == "ONLINE"
    assert [each["node_id"] for each in found["nodes"]] == ["my-submodule-node"]
    assert (node["tier"], node["inventory"]["hostname"]) == ("GPU_PEER", "submodule-host")
    assert beat["load_ratio"] == 0.25
    assert door.get("/stats").json()["states"] == {"ONLINE": 1}
    assert door.delete("/nodes/my-submodule-node").status_code == 409
    assert door.delete("/nodes/unknown").status_code == 404


def after_it_read_what_is_kept(door: httpx.Client) -> list[dict[str, Any]]:
    until = time.monotonic() + 10
    while True:
        nodes = door.get("/nodes").raise_for_status().json()["nodes"]
        if nodes and nodes[0]["draining"]:
            return list(nodes)
        assert time.monotonic() < until, nodes
        time.sleep(0.01)


def test_a_drain_survives_the_end_of_the_registry(registry: MeshProcess, door: httpx.Client):
    door.post("/nodes/register", json={"node_id": "a"}).raise_for_status()
    drained = door.post("/nodes/a/drain", json={"reason": "new fan"}).raise_for_status().json()
    registry.kill()
    registry.start(PROGRAM).wait_ready(["node_registry"])

    nodes = after_it_read_what_is_kept(door)
    assert drained == {"node_id": "a", "draining": True, "reason": "new fan", "known": True}
    assert [(node["draining"], node["draining_reason"]) for node in nodes] == [(True, "new fan")]
    assert door.get("/nodes", params={"draining": False}).json()["total"] == 0
    assert door.post("/nodes/a/undrain").raise_for_status().json()["draining"] is False


def test_changes_are_told_as_they_happen(registry: MeshProcess, door: httpx.Client):
    with door.stream("GET", "/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        with httpx.Client(base_url=door.base_url, timeout=20) as other:
            other.post("/nodes/register", json={"node_id": "a"}).raise_for_status()
        lines = events.iter_lines()
        told = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))

        assert (told["node_id"], told["state"], told["previous"]) == ("a", "ONLINE", None)
        assert registry.stop() == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/nodes/register", {}, 422),
        ("POST", "/nodes/register", {"node_id": "a b"}, 422),
        ("POST", "/nodes/register", {"node_id": "a", "tier": "best"}, 422),
        ("POST", "/nodes/register", {"node_id": "a", "memory": {"total_mb": -1}}, 422),
        ("POST", "/nodes/register", {"node_id": "a", "gpus": [{"vram_total_mb": 2**62}] * 4}, 422),
        ("POST", "/nodes/query", {"limit": 0}, 422),
        ("POST", "/nodes/query", {"min_tier": "best"}, 422),
        ("POST", "/nodes/unknown/heartbeat", {}, 404),
        ("GET", "/nodes/unknown", None, 404),
        ("GET", "/nodes?sort=colour", None, 422),
        ("GET", "/nodes?state=asleep", None, 422),
    ],
)
def test_what_cannot_be_done_is_said_as_a_problem(
    door: httpx.Client, method: str, path: str, body: dict[str, object] | None, status: int
):
    answer = door.request(method, path, json=body)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cpu": {"cores": 10**30}}, "cpu.cores"),
        ({"cpu": {"threads": 2**31}}, "cpu.threads"),
        ({"memory": {"total_mb": 2**41}}, "memory.total_mb"),
        ({"gpus": [{"vram_total_mb": 10**30}]}, "gpus.0.vram_total_mb"),
    ],
)
def test_what_no_machine_has_is_refused_by_its_name(door: httpx.Client, body: dict[str, Any], field: str):
    answer = door.post("/nodes/register", json={"node_id": "boaster"} | body)

    assert answer.status_code == 422
    assert field in answer.text
    assert door.get("/nodes/boaster").status_code == 404
