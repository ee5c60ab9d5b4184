"""Services that are started before NATS: whoever looks at them sees why they wait."""

import asyncio
from pathlib import Path

import httpx

from tests.mesh_process import SERVICES, mesh_process
from tests.nats_process import nats_process


async def test_before_nats_is_there_every_service_tells_what_it_waits_for(tmp_path: Path):
    with nats_process() as nats, mesh_process(tmp_path / "mesh", NATS_URL=nats.url) as mesh:
        nats.kill()
        mesh.start()
        async with httpx.AsyncClient() as http:
            for service in SERVICES:
                assert f"no connection to the nats-server at {nats.url}" in await _waits_for(http, mesh.url(service))
                assert (await http.get(f"{mesh.url(service)}/healthz")).json() == {"alive": True}
                assert "mesh_nats_connected 0.0" in (await http.get(f"{mesh.url(service)}/metrics")).text
            declined = await http.get(f"{mesh.url('work_marshaling')}/api/v1/stats")
            assert (declined.status_code, declined.json()["code"]) == (503, "disconnected")

            await asyncio.to_thread(nats.start)
            await asyncio.to_thread(mesh.wait_ready)
            assert (await http.get(f"{mesh.url('work_marshaling')}/api/v1/stats")).status_code == httpx.codes.OK


async def _waits_for(http: httpx.AsyncClient, url: str) -> str:
    """What readiness says of NATS once a connection was tried."""
    async with asyncio.timeout(30):
        while True:
            try:
                told = str((await http.get(f"{url}/readyz")).json()["checks"]["nats"])
            except httpx.ConnectError:
                told = "not connected yet"
            if "not connected yet" not in told:
                return told
            await asyncio.sleep(0.05)
