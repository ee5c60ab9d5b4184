"""The REST door of the running service: what it answers, also to bad input."""

import json

import pytest

from libs.common.bus.bus import Bus
from libs.common.contracts.streams import WORK_OBJECTS
from libs.common.contracts.work_marshaling import (
    COMPLETED,
    FAILED,
    SUBMIT,
    WorkCompleted,
    WorkError,
    WorkFailed,
    WorkItem,
)
from tests.integration.work_marshaling.conftest import Marshaling, Worker, eventually

MANY_LABELS = {f"name{number}": "x" * 4_000 for number in range(20)}


@pytest.fixture
async def up(marshaling: Marshaling) -> Marshaling:
    marshaling.start()
    await marshaling.ready()
    return marshaling


async def test_a_submitted_item_is_answered_with_its_id_and_found_at_once(up: Marshaling):
    accepted = await up.client.post("/api/v1/work/submit", json={"work_type": "echo"})
    found = await up.client.get(f"/api/v1/work/{accepted.json()['work_id']}")

    assert accepted.status_code == 202
    assert found.json()["status"] == "pending"


async def test_a_result_is_waited_for(up: Marshaling, worker: Worker):
    await worker.open()
    accepted = await up.client.post("/api/v1/work/submit", json={"work_type": "echo", "payload": {"a": 1}})
    result = await up.client.get(f"/api/v1/work/{accepted.json()['work_id']}/result?wait_seconds=10")

    assert result.status_code == 200
    assert result.json()["result"] == {"echo": {"a": 1}}


async def test_the_receipt_of_a_durable_publish_leads_to_the_item(up: Marshaling, bus: Bus):
    receipt = await bus.append(SUBMIT, WorkItem(work_type="echo"), message_id=None)
    found = await up.client.get(f"/api/v1/work/by-sequence/{receipt.sequence}")

    assert found.json()["sequence"] == receipt.sequence


async def test_an_item_can_be_cancelled_once(up: Marshaling):
    work_id = (await up.client.post("/api/v1/work/submit", json={"work_type": "echo"})).json()["work_id"]

    assert (await up.client.delete(f"/api/v1/work/{work_id}")).json()["status"] == "cancelled"
    assert (await up.client.delete(f"/api/v1/work/{work_id}")).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/work/absent", None, 404, "not_found"),
        ("GET", "/api/v1/work/absent/result", None, 404, "not_found"),
        ("GET", "/api/v1/work/absent/result?wait_seconds=61", None, 422, "malformed"),
        ("GET", "/api/v1/work?cursor=zzz", None, 422, "malformed"),
        ("GET", "/api/v1/work?status=lost", None, 422, "malformed"),
        ("GET", "/api/v1/work/by-sequence/0", None, 422, "malformed"),
        ("GET", "/api/v1/work/by-sequence/99999", None, 404, "not_found"),
        ("GET", "/api/v1/work/" + "x" * 200, None, 422, "malformed"),
        ("POST", "/api/v1/work/submit", {"work_type": "BAD"}, 422, "malformed"),
        ("POST", "/api/v1/work/submit", {"work_type": "echo", "work_id": "srv-1"}, 422, "malformed"),
        ("POST", "/api/v1/work/submit", {"work_type": "echo", "labels": MANY_LABELS}, 413, "too_large"),
        ("POST", "/api/v1/work/submit", {"work_type": "echo", "labels": {"a": "x" * 5_000}}, 422, "malformed"),
        ("POST", "/api/v1/work/absent/retry", None, 404, "not_found"),
        ("POST", "/api/v1/work/dead/absent/replay", None, 404, "not_found"),
        ("GET", "/api/v1/work/absent/events", None, 404, "not_found"),
        ("GET", "/api/v1/work?cursor=archive%7Cnonsense", None, 422, "malformed"),
        ("GET", "/api/v1/work?since=yesterday", None, 422, "malformed"),
        ("POST", "/api/v1/work/submit-batch", {"items": []}, 422, "malformed"),
        ("DELETE", "/api/v1/work/absent", None, 404, "not_found"),
    ],
)
async def test_what_is_wrong_is_told_in_a_problem_document(
    up: Marshaling, method: str, path: str, body: object, status: int, code: str
):
    answer = await up.client.request(method, path, json=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_an_id_with_other_content_is_a_conflict(up: Marshaling):
    item = {"work_type": "echo", "work_id": "mine"}
    await up.client.post("/api/v1/work/submit", json=item)

    again = await up.client.post("/api/v1/work/submit", json=item)
    other = await up.client.post("/api/v1/work/submit", json=item | {"priority": 0})

    assert again.json()["duplicate"] is True
    assert other.status_code == 409


async def test_the_metrics_tell_the_state_of_the_queue(up: Marshaling):
    await up.client.post("/api/v1/work/submit", json={"work_type": "echo"})
    told = (await up.client.get("/metrics")).text

    for line in ('mesh_work_items{status="pending"} 1.0', "mesh_work_admitted_total 1.0", "mesh_work_leader 1.0"):
        assert line in told


async def test_an_item_is_followed_over_http_to_its_end(up: Marshaling, worker: Worker):
    worker.seconds = (0.5, 0.5)
    await worker.open()
    work_id = (await up.client.post("/api/v1/work/submit", json={"work_type": "echo"})).json()["work_id"]
    async with up.client.stream("GET", f"/api/v1/work/{work_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines()]

    states = [json.loads(line.removeprefix("data: "))["status"] for line in lines if line.startswith("data: ")]
    assert states[-1] == "completed"
    assert [line for line in lines if line.startswith("event: ")] == ["event: state"] * len(states)
    assert all(line.startswith("id: ") for line in lines[::4])


async def test_an_item_that_failed_for_good_is_found_among_the_dead_and_replayed(up: Marshaling, bus: Bus):
    external = {"work_type": "echo", "max_attempts": 1, "requirements": {"node_ids": ["external"]}}
    work_id = (await up.client.post("/api/v1/work/submit", json=external)).json()["work_id"]

    async def assigned() -> bool:
        return bool((await up.client.get(f"/api/v1/work/{work_id}")).json()["attempts"])

    await eventually(assigned, 10)
    error = WorkError(code="broken", message="it broke")
    await bus.append(FAILED, WorkFailed(work_id=work_id, error=error), message_id=None)
    assert (await up.client.get(f"/api/v1/work/{work_id}/result?wait_seconds=10")).json()["status"] == "dead"
    dead = (await up.client.get("/api/v1/work/dead")).json()["items"]
    replayed = await up.client.post(f"/api/v1/work/dead/{work_id}/replay")

    assert work_id in [item["work_id"] for item in dead]
    assert replayed.status_code == 202
    assert (await up.client.get(f"/api/v1/work/{replayed.json()['work_id']}")).json()["retry_of"] == work_id


async def test_a_payload_of_some_megabytes_and_its_result_go_through(up: Marshaling, bus: Bus, worker: Worker):
    payload = {"text": "x" * 3_000_000}
    external = {"work_type": "echo", "payload": payload, "requirements": {"node_ids": ["external"]}}
    accepted = await up.client.post("/api/v1/work/submit", json=external)
    work_id = accepted.json()["work_id"]
    content = json.dumps("y" * 3_000_000).encode()
    ref = await bus.objects(WORK_OBJECTS).put("result-of-a-stranger", content)

    async def assigned() -> bool:
        return bool((await up.client.get(f"/api/v1/work/{work_id}")).json()["attempts"])

    await eventually(assigned, 10)
    await bus.append(COMPLETED, WorkCompleted(work_id=work_id, result_ref=ref), message_id=None)
    result = await up.client.get(f"/api/v1/work/{work_id}/result?wait_seconds=10")

    assert accepted.status_code == 202
    assert result.json()["result"] == "y" * 3_000_000


async def test_the_metrics_say_how_far_the_archive_is_and_what_objects_take(up: Marshaling):
    told = (await up.client.get("/metrics")).text

    for name in ("unarchived_items", "archive_waiting_rows", "archive_behind_seconds", "object_bytes", "event_streams"):
        assert f"\nmesh_work_{name}" in told
