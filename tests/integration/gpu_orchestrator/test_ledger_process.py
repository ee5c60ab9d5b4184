"""The ledger of a service of its own, on simulated GPUs: through its doors, under load and over a kill."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from services.gpu_orchestrator.meters import Root
from services.gpu_orchestrator.meters_proc import ProcProcesses
from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.simulator import Simulator

TOTAL_MB, DRIVER_MB, MARGIN_MB = 81559, 551, 256
IDLE_H100S = machines.Machine(
    gpus=tuple(replace(gpu, memory=(TOTAL_MB, 0, DRIVER_MB)) for gpu in machines.H100_X8.gpus)
)
DOCUMENTED = {"gpu_indices": [0, 1], "required_mb": 24576, "timeout_seconds": 300}


def started(mesh: MeshProcess) -> httpx.Client:
    mesh.start(("-m", "services.gpu_orchestrator"))
    mesh.wait_ready(["gpu_orchestrator"])
    return httpx.Client(base_url=f"{mesh.url('gpu_orchestrator')}/api/v1/gpu", timeout=20)


def test_the_documented_calls_work_as_they_are_written(tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator):
    simulator.show(IDLE_H100S)
    environment = {"NATS_URL": shared_nats.url, "NODE_ID": "doors", **simulator.settings}
    with mesh_process(tmp_path / "data", **environment) as mesh, started(mesh) as door:
        held = door.post("/reserve", json=DOCUMENTED).raise_for_status().json()
        states = door.get("/states").raise_for_status().json()["gpus"]
        question = {"required_mb": 24576, "gpu_count": 2, "prefer_nvlink": True}
        fits = door.post("/can-fit", json=question).raise_for_status().json()
        again = door.post("/reserve", json=DOCUMENTED | {"required_mb": 80_000})
        bad = door.post("/reserve", json=DOCUMENTED | {"gpu_indices": [8]})
        command = [sys.executable, "-m", "services.gpu_orchestrator", "--table"]
        table = subprocess.run(command, env=mesh.environment | {"COLUMNS": "160"}, capture_output=True, text=True)
        gone = door.delete(f"/reservations/{held['reservation_id']}").raise_for_status().json()

    whole = TOTAL_MB - DRIVER_MB - MARGIN_MB
    assert [state["ledger"]["free_mb"] for state in states] == [whole - 24576] * 2 + [whole] * 6
    assert (held["gpu_indices"], held["state"], gone["state"]) == ([0, 1], "held", "released")
    assert (fits["fits"], sorted(fits["gpu_indices"])) == (True, [0, 1])
    assert (table.returncode, table.stdout.count("H100")) == (0, 8), table.stderr
    assert f" 24576 │       0 │ {whole - 24576} │ " in table.stdout
    assert (again.status_code, again.json()["code"], len(again.json()["details"]["shortfalls"])) == (409, "conflict", 2)
    assert (bad.status_code, bad.json()["details"]["field"]) == (422, "gpu_indices")


@pytest.fixture
def engine() -> Iterator[int]:
    """The number of a process that does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_a_kill_loses_no_committed_claim_and_no_token(
    tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator, engine: int
):
    simulator.show(IDLE_H100S)
    with mesh_process(tmp_path / "data", NATS_URL=shared_nats.url, NODE_ID="killed", **simulator.settings) as mesh:
        with started(mesh) as door:
            held = (
                door.post("/reserve", json=DOCUMENTED | {"reservation_id": "model/1/killed"}).raise_for_status().json()
            )
            path = f"/reservations/{held['reservation_id']}"
            body = {"token": held["token"], "pid": engine}
            ours = door.post(f"{path}/commit", json=body | {"pid": os.getpid()})
            committed = door.post(f"{path}/commit", json=body).raise_for_status().json()
            mesh.kill()
        with started(mesh) as door:
            after = door.get(path).raise_for_status().json()
            ledger = door.get("/states").raise_for_status().json()["gpus"][0]["ledger"]
            new = door.post("/reserve", json={"required_mb": 1}).raise_for_status().json()
            stranger = door.delete(path, params={"token": new["token"]})

    assert {**after, "at": None} == {**committed, "at": None}
    assert (ledger["claimed_mb"], new["token"] > held["token"], stranger.status_code) == (24576, True, 403)
    assert (ours.status_code, ours.json()["details"]["field"]) == (422, "pid")


async def _crowd(url: str, mesh: MeshProcess) -> tuple[list[dict[str, object]], int]:
    """Two hundred at once, each until it is granted nothing more, and a kill in the middle."""
    granted: list[dict[str, object]] = []
    refused = 0
    enough = asyncio.Event()

    async def reserver(client: httpx.AsyncClient) -> None:
        nonlocal refused
        for _ in range(5):
            try:
                answer = await client.post("/reserve", json={"required_mb": 4000, "gpu_count": 1, "ram_mb": 1})
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                granted.append(answer.json())
            elif answer.status_code == 409:
                refused += 1
            if len(granted) >= 60:
                enough.set()

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        crowd = [asyncio.create_task(reserver(client)) for _ in range(200)]
        await asyncio.wait_for(enough.wait(), 60)
        mesh.kill()
        await asyncio.gather(*crowd)
    return granted, refused


async def test_two_hundred_reservers_and_a_kill_never_get_more_than_there_is(
    tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator
):
    simulator.show(IDLE_H100S)
    with mesh_process(tmp_path / "data", NATS_URL=shared_nats.url, NODE_ID="crowd", **simulator.settings) as mesh:
        with await asyncio.to_thread(started, mesh) as door:
            granted, _ = await _crowd(str(door.base_url), mesh)
        with await asyncio.to_thread(started, mesh) as door:
            listed = door.get("/reservations").raise_for_status().json()["reservations"]
            more = [door.post("/reserve", json={"required_mb": 4000}).status_code for _ in range(170)]
            final = door.get("/reservations").raise_for_status().json()["reservations"]

    claimed = Counter(uuid for each in final for uuid in each["gpu_uuids"])
    known = {each["reservation_id"]: each["token"] for each in listed}
    assert all(known.get(each["reservation_id"]) == each["token"] for each in granted)
    assert len({each["token"] for each in final}) == len(final)
    assert set(claimed.values()) == {(TOTAL_MB - DRIVER_MB - MARGIN_MB) // 4000}
    assert more.count(409) > 0


async def test_a_child_belongs_to_the_process_that_committed_and_not_to_a_later_one_of_its_number():
    processes = ProcProcesses()
    child = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        start = await processes.start_of(os.getpid())
        mine = Root(reservation_ids=("mine", "more"), pid=os.getpid(), pid_start=start)
        stale = Root(reservation_ids=("stale",), pid=os.getpid(), pid_start=(start or 0) + 1)
        family = await processes.families([mine], [child.pid])
        gone = await processes.families([stale], [child.pid])
    finally:
        child.kill()
        await child.wait()
        processes.close()

    both = ("mine", "more")
    assert (family.owners[child.pid], family.alive, family.ram_mb[both] > 0) == (both, dict.fromkeys(both, True), True)
    assert (gone.owners, gone.alive, family.commands[child.pid]) == ({}, {"stale": False}, "sleep 60")


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
async def test_there_is_no_start_of_a_process_that_is_not_there(pid: int):
    processes = ProcProcesses()

    assert await processes.start_of(pid) is None
    processes.close()
