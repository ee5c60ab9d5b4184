"""The main job is patient with a mesh that was just started."""

import json

import httpx

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import SystemClock
from libs.common.contracts.node_registry import Engine
from services import main_job
from tests.recording import RecordingObserver

ENGINE = Engine.model_validate(
    {
        "engine_id": "llama-1",
        "kind": "llama.cpp",
        "state": "READY",
        "model_name": "m",
        "url": "http://engine",
        "device": "cpu",
        "device_reason": "",
    }
)


class NobodyLeadsYet:
    """Work marshaling after a kill: it declines each request once, with the time after which to ask again."""

    def __init__(self) -> None:
        self.declined: set[str] = set()
        self.submitted: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            self.submitted.append(json.loads(request.content)["work_id"])
        if request.url.path not in self.declined:
            self.declined.add(request.url.path)
            return httpx.Response(503, headers={"Retry-After": "0"})
        work_id = self.submitted[-1]
        view = {"work_id": work_id, "status": "completed", "open_items": 0}
        return httpx.Response(202 if request.method == "POST" else 200, json=view)


async def test_while_nobody_leads_yet_it_asks_again_and_what_it_submits_twice_is_one_item():
    marshaling, clock = NobodyLeadsYet(), SystemClock()
    async with (
        MemoryServer(clock=clock).connect("main_job") as transport,
        httpx.AsyncClient(transport=httpx.MockTransport(marshaling)) as http,
    ):
        bus = Bus(transport, name="main_job", observer=RecordingObserver(), clock=clock)
        urls = {"work_marshaling": "http://marshaling"}
        mesh = main_job.Mesh(http=http, bus=bus, clock=clock, node_id="n", urls=urls)

        row = await main_job._by_rest(mesh, ENGINE, 1)

    assert row.status == "completed"
    assert marshaling.submitted == [row.work_id] * 2
