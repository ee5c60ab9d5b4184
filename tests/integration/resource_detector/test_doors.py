"""The detector as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.mesh_process import mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.simulator import Simulator

PROGRAM = ("-m", "services.resource_detector")


def test_every_part_of_the_machine_has_a_route(tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator):
    simulator.show(machines.MIXED)
    settings = {**simulator.settings, "NODE_TIER": "gpu_infra", "NATS_URL": shared_nats.url, "NODE_ID": "doors"}
    with mesh_process(tmp_path / "data", **settings) as mesh:
        mesh.start(PROGRAM)
        mesh.wait_ready(["resource_detector"])
        with httpx.Client(base_url=f"{mesh.url('resource_detector')}/api/v1", timeout=20) as door:
            whole = door.post("/refresh").raise_for_status().json()
            parts = {
                part: door.get(f"/resources/{part}").raise_for_status().json()
                for part in ("cpu", "memory", "gpus", "disks", "network")
            }
            platform = door.get("/resources/platform").raise_for_status().json()
            tier = door.get("/tier").raise_for_status().json()

            assert door.get("/inventory").json().keys() == door.get("/resources").json().keys() == whole.keys()
            topology = door.get("/resources/topology").raise_for_status().json()
        page = httpx.get(f"{mesh.url('resource_detector')}/metrics", timeout=20).text
        assert mesh.stop() == 0
        assert mesh.left_behind() == []

    assert parts["cpu"] == whole["cpu"]
    assert parts["memory"]["total_mb"] == whole["memory"]["total_mb"]
    assert [gpu["name"] for gpu in parts["gpus"]] == ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060"]
    assert topology == {
        "gpus": [machines.uuid(0), machines.uuid(1)],
        "paths": [[None, "PHB"], ["PHB", None]],
        "nvlinks": [[None, 0], [0, None]],
        "peer_access": [[None, False], [False, None]],
    }
    assert parts["disks"][0]["path"] == str(tmp_path / "data")
    assert (platform["platform"], platform["driver_version"]) == ("CUDA", "570.124.06")
    assert (tier["tier"], "owner" in tier["reasons"][0]) == ("GPU_INFRA", True)
    assert f'mesh_gpu_healthy{{gpu="{machines.uuid(0)}",name="NVIDIA GeForce RTX 4090"}} 1.0' in page


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_it_shows_the_machine_without_a_mesh(tmp_path: Path, simulator: Simulator, arguments: tuple[str, ...]):
    simulator.show(machines.T4)
    environment = {**simulator.environment, "MESH_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *PROGRAM, "--once", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    if arguments:
        told = json.loads(done.stdout)
        assert (told["gpus"][0]["vram_total_mb"], told["tier"]["tier"]) == (15360, "GPU_INFRA")
    else:
        assert "Tesla T4, compute capability 7.5" in done.stdout
        assert "14912 of 15360 MiB free, 0% busy, 40 °C, 70 W" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NODE_TIER", "best", "NODE_TIER is 'best'; it must be AI_FACTORY, GPU_PEER, GPU_INFRA or CPU_ONLY."),
        ("RESOURCE_DETECTOR_HEARTBEAT_SECONDS", "0", "RESOURCE_DETECTOR_HEARTBEAT_SECONDS is '0'"),
        ("NODE_LABELS", "cellar", "NODE_LABELS is 'cellar'; it must be a JSON object of texts"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_a_sentence(tmp_path: Path, name: str, value: str, words: str):
    with mesh_process(tmp_path / "data", **{name: value}) as mesh:
        assert mesh.run((*PROGRAM, "--once"), timeout=30) == 2
        assert words in mesh.output


def test_a_uuid_can_be_copied_from_a_narrow_terminal(tmp_path: Path, simulator: Simulator):
    simulator.show(machines.T4)
    environment = {**simulator.environment, "MESH_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "60"}
    done = subprocess.run(
        [sys.executable, *PROGRAM, "--once"], env=environment, capture_output=True, text=True, timeout=60
    )

    lines = done.stdout.splitlines()
    assert any(machines.uuid(0) in line for line in lines)
    assert max(map(len, lines)) <= 60


NVIDIA_SMI = """#!/bin/sh
echo "{uuid}, Tesla T4, 00000000:10:00.0, 7.5, {total}, 448, 350.00, 1980, 0, 14912, 40, 70.00"
"""


@pytest.mark.parametrize(("total", "code", "words"), [(15360, 0, "same"), (15109, 1, "DIFFERS")])
def test_it_can_be_held_against_nvidia_smi(tmp_path: Path, simulator: Simulator, total: int, code: int, words: str):
    simulator.show(machines.T4)
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI.format(uuid=machines.uuid(0), total=total))
    program.chmod(0o755)
    path = f"{program.parent}:{simulator.environment['PATH']}"
    environment = {**simulator.environment, "MESH_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", "PATH": path}
    done = subprocess.run(
        [sys.executable, *PROGRAM, "--compare"], env=environment, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, words in done.stdout) == (code, True), done.stdout + done.stderr


def test_without_nvidia_smi_it_says_so(tmp_path: Path):
    environment = {"PATH": str(tmp_path), "MESH_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, *PROGRAM, "--compare"], env=environment, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, "not installed" in done.stdout) == (0, True)
