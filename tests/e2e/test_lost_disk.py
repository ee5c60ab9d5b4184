"""The machine of NATS lost its disk: the mesh goes on with an empty one, and nobody has to start a service again."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.test_nothing_is_lost import all_ended, item
from tests.mesh_process import SERVICES, mesh_process
from tests.nats_process import nats_process


async def test_a_nats_that_lost_its_disk_is_furnished_again_and_work_goes_on(tmp_path: Path):
    with nats_process() as nats, mesh_process(tmp_path / "mesh", NATS_URL=nats.url) as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        marshaling, registry = mesh.url("work_marshaling"), mesh.url("node_registry")
        async with httpx.AsyncClient(timeout=30) as http:
            before = (await http.post(f"{marshaling}/api/v1/work/submit", json=item(1))).json()["work_id"]
            await all_ended(mesh, http, [before], timeout=30)
            await _archived(mesh.directory / "archive.db")
            node = (await http.get(f"{registry}/api/v1/nodes")).json()["nodes"][0]["node_id"]
            drained = await http.post(f"{registry}/api/v1/nodes/{node}/drain", json={"reason": "new fan"})
            assert drained.status_code == httpx.codes.OK
            lost = (await http.post(f"{marshaling}/api/v1/work/submit", json=item(2))).json()["work_id"]

            nats.kill()
            shutil.rmtree(nats.directory / "jetstream")
            await asyncio.to_thread(nats.start)
            await asyncio.to_thread(mesh.wait_ready, timeout=30)

            assert (await http.get(f"{marshaling}/api/v1/work/{lost}")).status_code == httpx.codes.NOT_FOUND
            await _until(http, f"{marshaling}/api/v1/work/{before}", lambda told: told["status"] == "completed")
            await _until(http, f"{registry}/api/v1/nodes", lambda told: told["nodes"][0]["draining"])
            await http.post(f"{registry}/api/v1/nodes/{node}/undrain")
            after = (await http.post(f"{marshaling}/api/v1/work/submit", json=item(3))).json()["work_id"]
            ended = await all_ended(mesh, http, [after], timeout=30)
            page = (await http.get(f"{marshaling}/metrics")).text

        assert [each["status"] for each in ended] == ["completed"]
        assert "mesh_nats_streams_made_again_total 0.0" not in page
        assert mesh.output.count("streams_made_again") == len(SERVICES)
        assert "work_lost" in mesh.output


async def _archived(database: Path) -> None:
    """The first item is where NATS cannot lose it."""
    async with asyncio.timeout(10):
        with contextlib.closing(sqlite3.connect(database)) as archive:
            while archive.execute("SELECT count(*) FROM work_items").fetchone() == (0,):
                await asyncio.sleep(0.05)


async def _until(http: httpx.AsyncClient, url: str, truth: Callable[[Any], bool]) -> None:
    async with asyncio.timeout(30):
        while not ((answer := await http.get(url)).is_success and truth(answer.json())):
            await asyncio.sleep(0.05)
