"""The memory of a whole mesh: its own engine is in the ledger like everybody else, whatever is killed."""

import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.mesh_process import MeshProcess, mesh_process


def engine_of(mesh: MeshProcess) -> dict[str, Any]:
    return httpx.get(f"{mesh.url('node_agent')}/api/v1/engines").raise_for_status().json()["engines"][0]


def claims_of(mesh: MeshProcess) -> list[dict[str, Any]]:
    url = f"{mesh.url('gpu_orchestrator')}/api/v1/gpu/reservations"
    return httpx.get(url).raise_for_status().json()["reservations"]


def until(holds: Callable[[], object], mesh: MeshProcess) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until, f"{claims_of(mesh)}\n{engine_of(mesh)}\n{mesh.output}"
        time.sleep(0.05)


def is_claimed(mesh: MeshProcess) -> bool:
    return [(each["state"], each["pid"]) for each in claims_of(mesh)] == [("committed", engine_of(mesh)["pid"])]


def test_the_engine_of_a_mesh_is_claimed_once_also_after_everything_was_killed(tmp_path):
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start().wait_ready()
        until(lambda: is_claimed(mesh), mesh)
        (before,) = claims_of(mesh)
        entry = httpx.get(f"{mesh.url('gpu_orchestrator')}/api/v1/memory").json()["ledger"]
        nats = [each for each in mesh_children(mesh) if "nats-server" in each.name()]
        mesh.kill()
        for each in nats:
            each.kill()

        mesh.start().wait_ready()
        until(lambda: is_claimed(mesh), mesh)
        (after,) = claims_of(mesh)

    assert (entry["claimed_mb"], entry["uses"][0]["over_claim"]) == (before["ram_mb"], False)
    kept = ("reservation_id", "token", "pid", "ram_mb", "reserved_at")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def mesh_children(mesh: MeshProcess) -> list[Any]:
    mesh.remember_children()
    return mesh.left_behind()
