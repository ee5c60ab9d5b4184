"""The main job is patient with a mesh that was just started, and with engines of any kind."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

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


@asynccontextmanager
async def mesh_with(answer: Callable[[httpx.Request], httpx.Response]) -> AsyncIterator[main_job.Mesh]:
    clock = SystemClock()
    async with (
        MemoryServer(clock=clock).connect("main_job") as transport,
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
    ):
        bus = Bus(transport, name="main_job", observer=RecordingObserver(), clock=clock)
        urls = {"work_marshaling": "http://marshaling"}
        yield main_job.Mesh(http=http, bus=bus, clock=clock, node_id="n", urls=urls)


async def test_while_nobody_leads_yet_it_asks_again_and_what_it_submits_twice_is_one_item():
    marshaling = NobodyLeadsYet()
    async with mesh_with(marshaling) as mesh:
        row = await main_job._by_rest(mesh, ENGINE, 1)

    assert row.status == "completed"
    assert marshaling.submitted == [row.work_id] * 2


@pytest.mark.parametrize(
    ("status", "metrics", "counted"),
    [
        (200, "# TYPE x counter\nllamacpp:tokens_predicted_total 640\n", 640),
        (200, 'vllm:generation_tokens_total{engine="0"} 600.0\nvllm:generation_tokens_total{engine="1"} 40.0\n', 640),
        (200, "process_cpu_seconds_total 1\n", None),
        (404, "", None),
    ],
)
async def test_an_engine_counts_in_its_own_words_or_not_at_all(status: int, metrics: str, counted: int | None):
    async with mesh_with(lambda _: httpx.Response(status, text=metrics)) as mesh:
        assert await main_job._counter(mesh, ENGINE) == counted


@pytest.mark.parametrize(
    ("by_engine", "alone", "good"),
    [(640, True, True), (641, True, False), (641, False, True), (639, False, False), (None, True, True)],
)
def test_more_tokens_than_ours_are_right_only_where_others_were_at_work(by_engine: int | None, alone: bool, good: bool):
    rows = [main_job.Row(number=n, door="REST", work_id=str(n), status="completed", tokens=16) for n in range(40)]
    report = main_job.Report(ENGINE, rows=rows, tokens_by_engine=by_engine, alone=alone)

    assert report.good is good
    assert ("BUT" in main_job._verdict(report)) is not good
