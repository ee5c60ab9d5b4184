"""NATS dies beside a ledger, with and without its disk: the journal is the truth, and the copy is right again."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import nats
from nats.errors import Error

from libs.common.contracts.gpu_orchestrator import Reservations
from tests.integration.gpu_orchestrator.test_ledger_process import IDLE_H100S, started
from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess, nats_process
from tests.nvml.simulator import Simulator

NODE = "copied"
Tokens = dict[str, int]


async def copied(server: NatsProcess) -> Tokens | None:
    """What the copy says; None while there is none."""
    try:
        async with await nats.connect(server.url, connect_timeout=2, allow_reconnect=False) as client:
            bucket = await client.jetstream().key_value("GPU_RESERVATIONS")
            entry = await bucket.get(NODE)
            told = Reservations.model_validate_json(entry.value or b"")
            return {each.reservation_id: each.token for each in told.reservations}
    except (Error, OSError, TimeoutError, ValueError):
        return None


def held(door: httpx.Client) -> Tokens:
    found = door.get("/reservations").raise_for_status().json()["reservations"]
    return {each["reservation_id"]: each["token"] for each in found}


async def until_copied(server: NatsProcess, expected: Tokens, mesh: MeshProcess) -> None:
    async with asyncio.timeout(30):
        while (told := await copied(server)) != expected:
            await asyncio.sleep(0.1)
            assert mesh.process is not None
            assert mesh.process.poll() is None, mesh.output
    assert told == expected


def reserve(door: httpx.Client) -> str:
    return str(door.post("/reserve", json={"required_mb": 100}).raise_for_status().json()["reservation_id"])


def release(door: httpx.Client, name: str) -> None:
    door.delete(f"/reservations/{name}").raise_for_status()


@asynccontextmanager
async def copying(tmp_path: Path, simulator: Simulator) -> AsyncIterator[tuple[NatsProcess, MeshProcess, httpx.Client]]:
    simulator.show(IDLE_H100S)
    with (
        nats_process() as server,
        mesh_process(tmp_path / "data", NATS_URL=server.url, NODE_ID=NODE, **simulator.settings) as mesh,
        await asyncio.to_thread(started, mesh) as door,
    ):
        yield server, mesh, door


async def test_a_ledger_goes_on_without_nats_and_its_copy_is_right_afterwards(tmp_path: Path, simulator: Simulator):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        first, second = reserve(door), reserve(door)
        await until_copied(server, held(door), mesh)

        server.kill()
        third = reserve(door)
        release(door, first)
        assert sorted(held(door)) == sorted([second, third])

        await asyncio.to_thread(server.start)
        await until_copied(server, held(door), mesh)


async def test_a_copy_that_was_lost_with_its_disk_is_made_anew_at_the_next_start(tmp_path: Path, simulator: Simulator):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        reserve(door)
        truth = held(door)
        await until_copied(server, truth, mesh)

        mesh.kill()
        server.kill()
        shutil.rmtree(server.directory / "jetstream")
        await asyncio.to_thread(server.start)

        with await asyncio.to_thread(started, mesh) as again:
            assert held(again) == truth
            await until_copied(server, truth, mesh)


async def test_a_copy_that_was_lost_with_its_disk_is_made_anew_although_nothing_changed(
    tmp_path: Path, simulator: Simulator
):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        reserve(door)
        truth = held(door)
        await until_copied(server, truth, mesh)

        server.kill()
        shutil.rmtree(server.directory / "jetstream")
        await asyncio.to_thread(server.start)

        await until_copied(server, truth, mesh)


async def test_a_bucket_that_somebody_deleted_is_made_and_filled_again(tmp_path: Path, simulator: Simulator):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        reserve(door)
        await until_copied(server, held(door), mesh)
        async with await nats.connect(server.url) as client:
            await client.jetstream().delete_key_value("GPU_RESERVATIONS")
        reserve(door)

        await until_copied(server, held(door), mesh)


async def test_when_both_are_killed_the_journal_is_believed_and_not_the_copy(tmp_path: Path, simulator: Simulator):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        reserve(door)
        truth = held(door)
        await until_copied(server, truth, mesh)
        mesh.kill()
        async with await nats.connect(server.url) as client:
            bucket = await client.jetstream().key_value("GPU_RESERVATIONS")
            entry = await bucket.get(NODE)
            lie = Reservations.model_validate_json(entry.value or b"").model_copy(update={"reservations": ()})
            await bucket.put(NODE, lie.model_dump_json().encode())
        await server.restart_after_kill()
        assert await copied(server) == {}

        with await asyncio.to_thread(started, mesh) as again:
            assert held(again) == truth
            await until_copied(server, truth, mesh)


async def test_a_ledger_that_was_stopped_for_a_moment_goes_on_as_before(tmp_path: Path, simulator: Simulator):
    async with copying(tmp_path, simulator) as (server, mesh, door):
        name = reserve(door)
        truth = held(door)
        assert mesh.process is not None
        os.kill(mesh.process.pid, signal.SIGSTOP)
        await server.restart_after_kill()
        os.kill(mesh.process.pid, signal.SIGCONT)

        assert door.post(f"/reservations/{name}/renew", json={}).raise_for_status().json()["state"] == "held"
        await until_copied(server, truth, mesh)
