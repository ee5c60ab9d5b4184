"""Hostile input on every subject and every route of a running mesh: answered clearly, and nothing else is disturbed."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import httpx
import nats as nats_py
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js import JetStreamContext

from libs.common.contracts.catalogue import catalogue
from libs.common.contracts.streams import VLLM_ORCHESTRATOR, WORK_MARSHALING
from tests.mesh_process import SERVICES, MeshProcess, mesh_process

HOSTILE = {
    "nothing": b"",
    "no JSON": b"\x00\x01 not json",
    "invalid UTF-8": b'{"work_type": "\xff\xfe"}',
    "a list": b"[1, 2, 3]",
    "a number": b"7",
    "deeply nested": b'{"payload": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deeply nested objects": b'{"payload":' * 5_000 + b"1" + b"}" * 5_000,
    "NaN": b'{"work_type": "inference", "payload": {"x": NaN}, "priority": NaN}',
    "an infinity": b'{"work_type": "inference", "payload": {"x": 1e999}}',
    "a huge integer": b'{"work_type": "inference", "payload": {"x": 1' + b"0" * 400 + b"}}",
    "wrong types": (
        b'{"work_type": 7, "node_id": [], "work_id": {}, "limit": "many", "boot_id": null, "instance": 7,'
        b' "model_name": []}'
    ),
    "a lone surrogate": rb'{"work_type": "inference", "work_id": "\ud800"}',
    "many keys": json.dumps({f"key{number}": number for number in range(20_000)}).encode(),
}

# A field that a message does not know is passed over, whatever it holds.
HARMLESS_IN_UNKNOWN_FIELDS = {"NaN", "an infinity", "a huge integer", "many keys"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path_factory.mktemp("mesh") / "data") as running:
        running.start().wait_ready()
        running.wait_until_listed()
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module", autouse=True)
def _undisturbed(mesh: MeshProcess) -> Iterator[None]:
    """After all of it the mesh is ready and still does its work."""
    yield
    mesh.wait_ready(timeout=10)
    # Some of the bodies were a good enough request to drain.
    httpx.post(f"{mesh.url('node_agent')}/api/v1/undrain")
    submitted = httpx.post(
        f"{mesh.url('work_marshaling')}/api/v1/work/submit",
        json={"work_type": "inference", "payload": {"prompt": "Still here?", "max_tokens": 4}},
    )
    url = f"{mesh.url('work_marshaling')}/api/v1/work/{submitted.json()['work_id']}"
    httpx.get(f"{url}/result", params={"wait_seconds": 30}, timeout=40)
    assert httpx.get(url).json()["status"] == "completed"


@pytest.mark.parametrize("what", HOSTILE)
async def test_every_call_answers_hostile_requests_with_an_error(mesh, what):
    client = await nats_py.connect(mesh.nats_url)
    places = await who_answers(mesh, client)
    for call in catalogue().calls:
        subject = call.at(places[call.owner] if call.per_node else None)
        try:
            answer = await client.request(subject, HOSTILE[what], timeout=5)
        except NoRespondersError:
            pytest.fail(f"nobody answers {subject}")
        body = json.loads(answer.data)
        if what not in HARMLESS_IN_UNKNOWN_FIELDS:
            assert body.get("error", {}).get("code") == "malformed", f"{subject}: {body}"
            assert body["error"]["message"]
    await client.close()


async def who_answers(mesh: MeshProcess, client: Client) -> dict[str, str]:
    """By service: the node it runs on; of those of which one leads, the instance that does."""
    node_id = httpx.get(f"{mesh.url('node_registry')}/api/v1/nodes").json()["nodes"][0]["node_id"]
    places = dict.fromkeys(SERVICES, node_id)
    for service, bucket in (("work_marshaling", WORK_MARSHALING), ("vllm_orchestrator", VLLM_ORCHESTRATOR)):
        lease = await (await client.jetstream().key_value(bucket.name)).get("leader")
        places[service] = json.loads(lease.value or b"")["holder"]
    return places


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_messages_on_every_subject_are_counted_and_stop_nobody(mesh, what):
    client = await nats_py.connect(mesh.nats_url)
    for topic in catalogue().topics:
        await client.publish(topic.subject, HOSTILE[what])
    await client.flush()
    await client.close()


async def test_a_durable_message_that_cannot_be_used_is_kept_with_its_reason(mesh):
    client = await nats_py.connect(mesh.nats_url)
    stream = client.jetstream()
    receipt = await stream.publish("compute.work.submit.v1", b'{"work_type": 7}')
    async with asyncio.timeout(10):
        while (letter := await letter_about(stream, receipt.seq)) is None:
            await asyncio.sleep(0.05)
    assert letter["reason_code"] == "malformed"
    assert "work_type" in letter["reason"]
    await client.close()


async def letter_about(stream: JetStreamContext, sequence: int) -> dict[str, object] | None:
    """The dead letter about a message of WORK_IN. Other tests have left hostile messages in that stream, too."""
    last = (await stream.stream_info("DEAD_LETTERS")).state.last_seq
    for number in range(1, last + 1):
        raw = await stream.get_msg("DEAD_LETTERS", number)
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            letter = json.loads(raw.data or b"")
            if (letter["stream"], letter["sequence"]) == ("WORK_IN", sequence):
                return letter
    return None


@pytest.mark.parametrize("service", SERVICES)
async def test_every_route_answers_hostile_bodies_with_a_problem_document(mesh, service):
    async with httpx.AsyncClient(base_url=mesh.url(service), timeout=30) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        for path, methods in paths.items():
            for method, operation in methods.items():
                if "requestBody" not in operation:
                    continue
                for what, body in HOSTILE.items():
                    url = path.replace("{", "").replace("}", "")
                    answer = await http.request(method, url, content=body, headers={"Content-Type": "application/json"})
                    told = f"{method} {path} with {what}: {answer.status_code} {answer.text[:200]}"
                    assert answer.status_code < 500, told
                    if answer.status_code >= 400:
                        assert answer.headers["Content-Type"] == "application/problem+json", told
                        assert answer.json()["code"], told


@pytest.mark.parametrize("service", SERVICES)
async def test_unknown_routes_and_wrong_methods_are_problem_documents(mesh, service):
    async with httpx.AsyncClient(base_url=mesh.url(service)) as http:
        missing = await http.get("/api/v1/nothing-here")
        wrong = await http.delete("/version")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert wrong.status_code == 405
    assert wrong.headers["Content-Type"] == "application/problem+json"


async def test_a_body_beyond_the_limit_is_refused_by_its_size(mesh):
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(
            f"{mesh.url('work_marshaling')}/api/v1/work/submit",
            content=b'{"work_type": "inference", "payload": {"x": "' + b"x" * (33 * 1024 * 1024) + b'"}}',
            headers={"Content-Type": "application/json"},
        )
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
