"""The GPU orchestrator as a process of its own."""

from pathlib import Path

import httpx

from tests.mesh_process import mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.simulator import Simulator


def test_memory_is_that_of_the_moment_of_the_question(tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator):
    simulator.show(machines.T4)
    with mesh_process(tmp_path / "data", NATS_URL=shared_nats.url, NODE_ID="gpus", **simulator.settings) as mesh:
        mesh.start(("-m", "services.gpu_orchestrator"))
        mesh.wait_ready(["gpu_orchestrator"])
        with httpx.Client(base_url=f"{mesh.url('gpu_orchestrator')}/api/v1", timeout=20) as door:
            before = door.get("/gpu/states").raise_for_status().json()["gpus"][0]["gpu"]
            simulator.show(machines.T4.changed(0, memory=(15360, 9000, 448), processes=((7, 8900, "c"),)))
            after = door.get("/gpu/states").raise_for_status().json()["gpus"][0]["gpu"]
            users = door.get(f"/gpu/states/{machines.uuid(0)}/processes").raise_for_status().json()["processes"]
            unknown = door.get("/gpu/states/none/processes")
            memory = door.get("/memory").raise_for_status().json()["memory"]

    assert (before["vram_used_mb"], after["vram_used_mb"], after["vram_free_mb"]) == (0, 9000, 5912)
    assert [(user["pid"], user["used_mb"], user["kind"]) for user in users] == [(7, 8900, "compute")]
    assert (unknown.status_code, unknown.json()["details"]["gpus"]) == (404, [machines.uuid(0)])
    assert 0 < memory["available_mb"] <= memory["total_mb"]
