"""Two processes on one nats-server: one leads, the other stands by, and neither kills nor halts cost anything."""

import asyncio
import contextlib
import signal
import time

import httpx
import nats as nats_py
import pytest
from nats.js.errors import APIError

from libs.common.bus.bus import Bus
from libs.common.contracts.work_marshaling import WORK_STATUS, WorkLookup
from tests.integration.work_marshaling.conftest import Marshaling, Worker, done, eventually, submit_all, submitting_all
from tests.nats_process import NatsProcess

TAKE_OVER_SECONDS = 5.0
HALTED_SECONDS = 90.0


@pytest.fixture
async def both(marshaling: Marshaling, second: Marshaling) -> tuple[Marshaling, Marshaling]:
    """The one that leads, and the one that stands by."""
    marshaling.start()
    await marshaling.ready()
    await eventually(marshaling.leads, 5)
    second.start()
    await second.ready()
    return marshaling, second


async def test_either_takes_work_in_and_answers_for_it(both: tuple[Marshaling, Marshaling], worker: Worker, bus: Bus):
    leader, standby = both
    await worker.open()
    assert (await standby.role()).startswith("ok: it stands by for ")
    receipts = [
        (await door.ask("POST", "/api/v1/work/submit", json={"work_type": "echo", "payload": {"at": name}})).json()
        for name, door in (("leader", leader), ("standby", standby))
    ]

    for receipt in receipts:
        for door in both:
            path = f"/api/v1/work/{receipt['work_id']}/result"
            told = (await door.ask("GET", path, params={"wait_seconds": 10})).json()
            assert told["result"]["echo"]["at"] in {"leader", "standby"}
    for _ in range(10):  # either may be the one that is asked
        assert (await bus.request(WORK_STATUS, WorkLookup(work_id=receipts[0]["work_id"]))).ended_at is not None
    listed = [(await door.ask("GET", "/api/v1/work", params={"limit": 1})).json() for door in both]
    assert listed[0] == listed[1]


async def test_one_that_stands_by_declines_as_the_leader_does(both: tuple[Marshaling, Marshaling]):
    for door in both:
        missing = await door.ask("GET", "/api/v1/work/never-heard-of")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert missing.headers["content-type"] == "application/problem+json"
        wrong = await door.ask("GET", "/api/v1/work", params={"limit": 0})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "malformed")
        assert (await door.ask("DELETE", "/api/v1/work/never-heard-of")).status_code == 404


async def test_metrics_tell_who_leads(both: tuple[Marshaling, Marshaling]):
    pages = [(await door.client.get("/metrics")).text for door in both]

    assert "\nmesh_work_leader 1.0\n" in pages[0]
    assert "\nmesh_work_leader 0.0\n" in pages[1]
    assert 'mesh_work_role{role="leader"} 1.0' in pages[0]
    assert 'mesh_work_role{role="standby"} 1.0' in pages[1]


async def test_when_the_leader_is_killed_the_other_leads_at_once(both: tuple[Marshaling, Marshaling], worker: Worker):
    leader, standby = both
    await worker.open()
    submitting = asyncio.create_task(submit_all(standby, 400))
    await asyncio.sleep(0.5)
    leader.kill()
    killed = time.monotonic()
    await eventually(standby.leads, TAKE_OVER_SECONDS)
    assert time.monotonic() - killed < TAKE_OVER_SECONDS
    await submitting
    await eventually(lambda: done(standby, 400), 30)

    totals = await standby.totals()
    assert (totals["admitted"], totals["completed"]) == (400, 400)
    assert all(runs == 1 for runs in worker.runs.values())


async def test_killing_the_one_that_stands_by_costs_nothing(both: tuple[Marshaling, Marshaling], worker: Worker):
    leader, standby = both
    await worker.open()
    submitting = asyncio.create_task(submit_all(leader, 200))
    for _ in range(2):
        standby.kill()
        standby.start()
        await standby.ready()
    await submitting
    await eventually(lambda: done(leader, 200), 30)

    assert await leader.leads()
    assert all(runs == 1 for runs in worker.runs.values())


async def test_a_leader_that_is_stopped_hands_over_at_once(both: tuple[Marshaling, Marshaling]):
    leader, standby = both
    assert leader.process is not None
    leader.process.terminate()
    assert await asyncio.to_thread(leader.process.wait, 10) == 0
    ended = time.monotonic()
    await eventually(standby.leads, TAKE_OVER_SECONDS)

    assert time.monotonic() - ended < 2


async def test_a_leader_that_was_halted_and_replaced_does_no_harm_when_it_wakes(
    both: tuple[Marshaling, Marshaling], worker: Worker
):
    leader, standby = both
    await worker.open()
    async with asyncio.timeout(HALTED_SECONDS), submitting_all(standby, 400) as submitting:
        await asyncio.sleep(0.3)
        leader.send(signal.SIGSTOP)
        await eventually(lambda: says(standby, "leads and does not answer"), TAKE_OVER_SECONDS)
        await eventually(standby.leads, 2 * TAKE_OVER_SECONDS)
        await submitting
        leader.send(signal.SIGCONT)
        await eventually(lambda: stands_by(leader), 10)
        await eventually(lambda: done(leader, 400), 30)

    totals = await standby.totals()
    assert (totals["admitted"], totals["completed"]) == (400, 400)
    assert all(runs == 1 for runs in worker.runs.values())
    assert leader.process is not None
    assert leader.process.poll() is None
    standby.kill()
    await eventually(leader.leads, TAKE_OVER_SECONDS)
    assert (await leader.totals())["completed"] == 400


async def stands_by(marshaling: Marshaling) -> bool:
    return await says(marshaling, "stands by")


async def says(marshaling: Marshaling, words: str) -> bool:
    try:
        return words in await marshaling.role()
    except httpx.TransportError:
        return False


async def test_a_log_that_is_full_refuses_work_until_anybody_makes_it_larger(
    nats: NatsProcess, marshaling: Marshaling, worker: Worker
):
    marshaling.environment["WORK_LOG_MAX_MB"] = "1"
    marshaling.start()
    await marshaling.ready()
    await eventually(marshaling.leads, 5)
    client = await nats_py.connect(nats.url)
    stream = client.jetstream()
    for size in (50_000, 1000, 10):
        with contextlib.suppress(APIError):
            while True:
                await stream.publish("compute.work.log.v1", b"x" * size)
    item = {"work_type": "echo", "payload": {"number": 1}}
    accepted = await marshaling.client.post("/api/v1/work/submit", json=item)

    async def refused() -> bool:
        answer = await marshaling.client.post("/api/v1/work/submit", json=item)
        return answer.status_code == 503 and answer.json()["code"] == "stream_full" and "retry-after" in answer.headers

    await eventually(refused, 10)
    config = (await stream.stream_info("WORK_LOG")).config
    config.max_bytes = 8 * 1024 * 1024
    await stream.update_stream(config)
    await client.close()
    await worker.open()

    again = await marshaling.ask("POST", "/api/v1/work/submit", json=item)
    for receipt in (accepted, again):
        path = f"/api/v1/work/{receipt.json()['work_id']}/result"
        assert (await marshaling.ask("GET", path, params={"wait_seconds": 20})).json()["status"] == "completed"


async def test_a_stream_without_an_end_is_told_by_the_leader_alone(both: tuple[Marshaling, Marshaling]):
    leader, standby = both
    receipt = (await leader.ask("POST", "/api/v1/work/submit", json={"work_type": "echo"})).json()
    answer = await standby.client.get(f"/api/v1/work/{receipt['work_id']}/events")

    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert f"port {leader.client.base_url.port}" in answer.json()["detail"]
