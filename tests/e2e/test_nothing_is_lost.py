"""Work that was accepted ends with exactly one result, whatever is killed. The truth is the submitters' receipts."""

import asyncio
import json
import random
from collections import Counter

import httpx
import nats as nats_py
import pytest

from tests.mesh_process import MeshProcess, mesh_process

ENDED = {"completed", "failed", "dead", "cancelled"}


def item(number: int) -> dict[str, object]:
    return {"work_type": "inference", "payload": {"prompt": f"Item {number}:", "max_tokens": 8, "seed": number}}


async def submit_by_rest(mesh: MeshProcess, http: httpx.AsyncClient, numbers: range) -> list[str]:
    """The ids that were answered with 202."""
    accepted = []
    for number in numbers:
        try:
            answer = await http.post(f"{mesh.url('work_marshaling')}/api/v1/work/submit", json=item(number))
        except httpx.TransportError:
            break
        if answer.status_code == httpx.codes.ACCEPTED:
            accepted.append(answer.json()["work_id"])
    return accepted


async def submit_by_nats(mesh: MeshProcess, numbers: range) -> list[int]:
    """The stream sequences that the server's receipts told. Plain nats-py, as a stranger would."""
    client = await nats_py.connect(mesh.nats_url)
    receipts = []
    for number in numbers:
        answer = await client.request("compute.work.submit.v1", json.dumps(item(number)).encode(), timeout=5)
        receipts.append(json.loads(answer.data)["seq"])
    await client.close()
    return receipts


async def all_ended(mesh: MeshProcess, http: httpx.AsyncClient, ids: list[str], *, timeout: float) -> list[dict]:
    async def one(work_id: str) -> dict:
        url = f"{mesh.url('work_marshaling')}/api/v1/work/{work_id}"
        while True:
            view = (await http.get(url)).json()
            if view["status"] in ENDED:
                return view
            await http.get(f"{url}/result", params={"wait_seconds": 10})

    async with asyncio.timeout(timeout):
        return await asyncio.gather(*(one(work_id) for work_id in ids))


async def id_of(mesh: MeshProcess, http: httpx.AsyncClient, sequence: int) -> str:
    async with asyncio.timeout(30):
        while True:
            answer = await http.get(f"{mesh.url('work_marshaling')}/api/v1/work/by-sequence/{sequence}")
            if answer.status_code == httpx.codes.OK:
                return answer.json()["work_id"]
            await asyncio.sleep(0.05)


async def outcomes_by_item(mesh: MeshProcess) -> Counter[str]:
    """How many successes the stream holds for each item, read by plain nats-py."""
    client = await nats_py.connect(mesh.nats_url)
    stream = client.jetstream()
    last = (await stream.stream_info("WORK_OUT")).state.last_seq
    found: Counter[str] = Counter()
    for sequence in range(1, last + 1):
        message = await stream.get_msg("WORK_OUT", sequence)
        told = json.loads(message.data)
        if message.subject == "compute.work.completed.v1":
            found[told["work_id"]] += 1
        elif message.subject == "compute.work.outcomes.v1":
            found.update(each["work_id"] for each in told["completed"])
    await client.close()
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_kill_of_the_whole_process_loses_and_doubles_nothing(tmp_path, seed):
    moment = random.Random(seed).uniform(0.05, 0.6)
    with mesh_process(tmp_path / "data") as mesh:
        mesh.start().wait_ready()
        async with httpx.AsyncClient(timeout=30) as http:
            by_rest = asyncio.create_task(submit_by_rest(mesh, http, range(1000)))
            receipts = await submit_by_nats(mesh, range(50))
            await asyncio.sleep(moment)
            mesh.kill()
            accepted = await by_rest

            mesh.start().wait_ready()
            accepted += [await id_of(mesh, http, sequence) for sequence in receipts]
            views = await all_ended(mesh, http, accepted, timeout=60)

        assert len(accepted) >= 50
        assert {view["status"] for view in views} == {"completed"}
        completed_attempts = [sum(a["outcome"] == "completed" for a in view["attempts"]) for view in views]
        assert set(completed_attempts) == {1}
        assert set(await outcomes_by_item(mesh)) >= set(accepted)
        assert mesh.stop() == 0
        assert mesh.left_behind() == []


async def test_a_hundred_plain_publishes_while_marshaling_is_down_all_get_results(tmp_path):
    others = ("-m", "services", "node_registry", "resource_detector", "node_agent")
    with mesh_process(tmp_path / "data") as mesh, mesh_process(tmp_path / "marshaling") as marshaling:
        mesh.start(others).wait_ready(("node_registry", "resource_detector", "node_agent"))
        client = await nats_py.connect(mesh.nats_url)
        for number in range(100):
            await client.publish("compute.work.submit.v1", json.dumps(item(number)).encode())
        await client.flush()
        await client.close()

        marshaling.environment["NATS_URL"] = mesh.nats_url
        marshaling.start(("-m", "services", "work_marshaling")).wait_ready(("work_marshaling",))
        async with httpx.AsyncClient(timeout=30) as http:
            ids = [await id_of(marshaling, http, sequence) for sequence in range(1, 101)]
            views = await all_ended(marshaling, http, ids, timeout=60)

        assert Counter(view["status"] for view in views) == {"completed": 100}
        assert all(view["result"]["usage"]["completion_tokens"] > 0 for view in views)
        assert marshaling.stop() == 0
        assert mesh.stop() == 0
