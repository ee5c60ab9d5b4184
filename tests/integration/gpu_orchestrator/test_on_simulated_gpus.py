"""What happens to GPUs while they are reserved, on a simulated driver: one service for all of it."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator

H100 = replace(machines.H100_X8.gpus[0], memory=(81559, 0, 551), links=(), near=())
WHOLE_MB = 81559 - 551 - 256
DIVIDED, UNIFIED, SILENT = 8, 9, 10
MACHINE = Machine(gpus=(*(H100,) * 8, *machines.A100_MIG.gpus, *machines.GB10.gpus, *machines.T4.gpus))
PART = f"MIG-00-{machines.uuid(DIVIDED)}"


@dataclass
class Rig:
    simulator: Simulator
    mesh: MeshProcess
    door: httpx.Client

    def show(self, number: int, **changes: object) -> None:
        self.simulator.show(MACHINE.changed(number, **changes))

    def reserve(self, **wish: object) -> httpx.Response:
        return self.door.post("/reserve", json=wish)

    def entry(self, number: int) -> dict[str, Any]:
        return dict(self.state(number)["ledger"])

    def state(self, number: int) -> dict[str, Any]:
        return dict(self.door.get("/states").raise_for_status().json()["gpus"][number])

    def until(self, number: int, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while not good(entry := self.entry(number)):
            assert time.monotonic() < deadline, entry
        return entry


@pytest.fixture(scope="module")
def service(nvml_library: Path, shared_nats: NatsProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    simulator = Simulator(nvml_library, folder / "machine.txt")
    simulator.show(MACHINE)
    knobs = {"GPU_LEAK_GRACE_SECONDS": "0.2", "GPU_HEALTHY_SECONDS": "0.5", "NODE_ID": "rig"}
    with mesh_process(folder / "data", NATS_URL=shared_nats.url, **knobs, **simulator.settings) as mesh:
        mesh.start(("-m", "services.gpu_orchestrator"))
        mesh.wait_ready(["gpu_orchestrator"])
        with httpx.Client(base_url=f"{mesh.url('gpu_orchestrator')}/api/v1/gpu", timeout=20) as door:
            yield Rig(simulator, mesh, door)


@pytest.fixture
def rig(service: Rig) -> Iterator[Rig]:
    service.simulator.show(MACHINE)
    yield service
    for held in service.door.get("/reservations").raise_for_status().json()["reservations"]:
        service.door.delete(f"/reservations/{held['reservation_id']}")


@pytest.fixture
def engine() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process.pid
        process.kill()


def test_a_stranger_that_takes_most_of_a_card_between_question_and_reservation_is_seen(rig: Rig):
    question = {"required_mb": 40_000, "gpu_indices": [0]}
    fits = rig.door.post("/can-fit", json=question).json()["fits"]
    taken = WHOLE_MB * 60 // 100
    rig.show(0, memory=(81559, taken, 551), processes=((4_000_000, taken, "c"),))
    refused = rig.reserve(**question)
    elsewhere = rig.reserve(required_mb=40_000)

    assert (fits, refused.status_code) == (True, 409)
    shortfall = refused.json()["details"]["shortfalls"][0]
    assert (shortfall["missing_mb"], shortfall["free_mb"]) == (40_000 - WHOLE_MB + taken, WHOLE_MB - taken)
    assert elsewhere.json()["gpu_indices"] != [0]


def test_a_gpu_that_is_lost_keeps_its_claims_and_is_given_again_only_once_it_was_well_for_a_while(rig: Rig):
    held = rig.reserve(required_mb=1000, gpu_indices=[1]).raise_for_status().json()
    rig.show(1, lost=True)
    lost = rig.entry(1)
    refused = rig.reserve(required_mb=1, gpu_indices=[1])
    kept = rig.door.get(f"/reservations/{held['reservation_id']}").json()["state"]
    rig.simulator.show(MACHINE)
    watched = rig.until(1, lambda entry: entry["free_mb"] is not None)["problem"]
    well = rig.until(1, lambda entry: entry["problem"] is None)

    assert (lost["claimed_mb"], kept, refused.status_code) == (1000, "held", 409)
    assert "lost" in refused.json()["details"]["shortfalls"][0]["reason"]
    assert "watched" in watched
    assert well["free_mb"] == WHOLE_MB - 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"slowdown": 0x40}, "so hot"), ({"ecc": (1, 3)}, "3 more uncorrectable errors"), ({"remap_failed": 1}, "worn")],
)
def test_a_gpu_that_is_not_well_is_not_given_and_the_reason_told(rig: Rig, changes: dict[str, object], words: str):
    rig.show(2, **changes)
    told = rig.entry(2)["problem"]
    refused = rig.reserve(required_mb=1, gpu_indices=[2])
    rig.simulator.show(MACHINE)
    rig.until(2, lambda entry: entry["problem"] is None)

    assert words in told
    assert refused.status_code == 409


def test_heat_that_only_the_driver_answers_is_normal(rig: Rig):
    rig.show(2, slowdown=0x20)

    assert rig.entry(2)["problem"] is None


def test_an_engine_that_outlives_its_reservation_is_told_with_its_command_and_age(rig: Rig, engine: int):
    held = rig.reserve(required_mb=5000, gpu_indices=[3]).raise_for_status().json()
    path = f"/reservations/{held['reservation_id']}"
    rig.door.post(f"{path}/commit", json={"pid": engine, "token": held["token"]}).raise_for_status()
    rig.show(3, memory=(81559, 5000, 551), processes=((engine, 5000, "c"),))
    ours = rig.entry(3)["ours_mb"]
    rig.door.delete(path).raise_for_status()
    entry = rig.until(3, lambda entry: bool(entry["leaks"]))

    leak = entry["leaks"][0]
    assert (ours, leak["pid"], leak["used_mb"], leak["reservation_id"]) == (5000, engine, 5000, held["reservation_id"])
    assert "time.sleep(600)" in leak["command"]
    assert leak["age_seconds"] >= 0.2
    assert entry["free_mb"] == WHOLE_MB - 5000
    assert f"process {engine}" in rig.mesh.output


def test_a_divided_gpu_is_given_by_its_parts(rig: Rig):
    whole = rig.reserve(required_mb=1000, gpu_indices=[DIVIDED])
    held = rig.reserve(required_mb=40_000, gpu_uuids=[PART]).raise_for_status().json()
    again = rig.reserve(required_mb=40_000, gpu_uuids=[PART])
    parts = rig.state(DIVIDED)["parts"]

    assert (whole.status_code, again.status_code, held["gpu_indices"]) == (409, 409, [DIVIDED])
    assert "divided" in whole.json()["details"]["shortfalls"][0]["reason"]
    assert parts[PART]["free_mb"] == 40448 - 256 - 40_000


def test_a_gpu_that_uses_the_machines_memory_gives_ram(rig: Rig):
    refused = rig.reserve(required_mb=1, gpu_indices=[UNIFIED])
    held = rig.reserve(gpu_count=0, ram_mb=10)

    assert (refused.status_code, held.status_code) == (409, 200)
    assert "ram_mb" in refused.json()["details"]["shortfalls"][0]["reason"]


def test_where_use_by_process_is_not_told_the_difference_of_totals_is_used_and_that_is_said(rig: Rig, engine: int):
    rig.show(SILENT, memory=(15360, 1000, 448), processes=((4_000_000, -1, "c"),))
    alone = rig.entry(SILENT)
    held = rig.reserve(required_mb=4000, gpu_indices=[SILENT]).raise_for_status().json()
    rig.door.post(f"/reservations/{held['reservation_id']}/commit", json={"pid": engine}).raise_for_status()
    rig.show(SILENT, memory=(15360, 6000, 448), processes=((4_000_000, -1, "c"), (engine, -1, "c")))
    entry = rig.entry(SILENT)

    assert (alone["attributed"], alone["foreign_mb"]) == (False, 1000)
    assert (entry["attributed"], entry["foreign_mb"], entry["ours_mb"], entry["held_mb"]) == (False, 1000, 5000, 5000)


async def test_fifty_who_want_all_eight_gpus_at_once_get_all_or_nothing(rig: Rig):
    async with httpx.AsyncClient(base_url=rig.door.base_url, timeout=60) as client:
        wish = {"required_mb": 4000, "gpu_indices": list(range(8))}
        answers = await asyncio.gather(*(client.post("/reserve", json=wish) for _ in range(50)))
    granted = [answer.json() for answer in answers if answer.status_code == 200]

    assert len(granted) == WHOLE_MB // 4000
    assert {answer.status_code for answer in answers} == {200, 409}
    assert {tuple(each["gpu_indices"]) for each in granted} == {tuple(range(8))}
    assert rig.entry(7)["claimed_mb"] == 4000 * len(granted)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"required_mb": 1, "gpu_indices": [99]}, "gpu_indices"),
        ({"required_mb": 1, "gpu_uuids": ["GPU-none"]}, "gpu_uuids"),
        ({"required_mb": 1, "gpu_indices": [0, 0]}, "gpu_indices"),
        ({"required_mb": -1}, "required_mb"),
        ({"required_mb": 2**40}, "required_mb"),
        ({"required_mb": 1, "timeout_seconds": 0}, "timeout_seconds"),
        ({"required_mb": 1, "timeout_seconds": 1e9}, "timeout_seconds"),
    ],
)
def test_a_request_that_makes_no_sense_names_its_field_and_changes_nothing(
    rig: Rig, body: dict[str, object], field: str
):
    refused = rig.reserve(**body)

    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert field in refused.text
    assert rig.door.get("/reservations").json()["reservations"] == []


def test_a_strangers_token_is_refused_and_changes_nothing(rig: Rig):
    held, other = (rig.reserve(required_mb=1).json() for _ in range(2))
    path = f"/reservations/{held['reservation_id']}"
    refused = rig.door.delete(path, params={"token": other["token"]})

    assert (refused.status_code, "token" in refused.text) == (403, True)
    assert rig.door.get(path).json()["state"] == "held"
