"""On a real nats-server: `kill -9` at any instant, and every accepted item still ends with exactly one result."""

import asyncio
import contextlib
import random
import signal

import httpx
import pytest

from libs.common.bus.bus import Bus
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import COMPLETED, SUBMIT, WorkItem
from tests.integration.work_marshaling.conftest import Marshaling, Worker, eventually, free_port
from tests.nats_process import NatsProcess

ITEMS = 1_000


async def submit_all(marshaling: Marshaling, items: int) -> dict[str, int]:
    """By the REST door, again and again with the same ids, as a careful client does. Returns the receipts."""
    receipts: dict[str, int] = {}
    for first in range(0, items, 50):
        wanted = range(first, min(items, first + 50))
        batch = [{"work_id": f"item-{number}", "work_type": "echo", "payload": {"number": number}} for number in wanted]
        while True:
            answer = await marshaling.ask("POST", "/api/v1/work/submit-batch", json={"items": batch})
            accepted = [each["accepted"] for each in answer.json()["answers"]]
            if all(accepted):
                break
        receipts |= {each["work_id"]: number for each, number in zip(accepted, wanted, strict=True)}
        await asyncio.sleep(0.02)
    return receipts


async def done(marshaling: Marshaling, count: int) -> bool:
    return (await marshaling.totals()).get("completed", 0) >= count


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_again_and_again_every_item_has_exactly_one_result(
    marshaling: Marshaling, worker: Worker, bus: Bus, seed: int
):
    chance = random.Random(seed)
    marshaling.start()
    await marshaling.ready()
    await worker.open()
    submitting = asyncio.create_task(submit_all(marshaling, ITEMS))
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.2, 1.2))
        marshaling.kill()
        marshaling.start()
    receipts = await submitting
    await eventually(lambda: done(marshaling, ITEMS), 60)

    assert len(receipts) == ITEMS
    totals = await marshaling.totals()
    assert (totals["admitted"], totals["completed"]) == (ITEMS, ITEMS)
    for work_id, number in receipts.items():
        result = (await marshaling.ask("GET", f"/api/v1/work/{work_id}/result")).json()
        assert result["result"] == {"echo": {"number": number}}
    assert set(worker.runs) == set(receipts)
    outcomes = (await bus.stream_state(WORK_OUT)).last_sequence
    assert outcomes == totals["completed"] + totals.get("late", 0)


async def test_plain_publishes_while_it_is_down_are_all_done(marshaling: Marshaling, worker: Worker, bus: Bus):
    marshaling.start()
    await marshaling.ready()
    marshaling.kill()
    for number in range(100):
        await bus.publish(SUBMIT, WorkItem(work_type="echo", payload={"number": number}))
    await worker.open()
    marshaling.start()
    await eventually(lambda: done(marshaling, 100), 30)

    told = [await bus.message(WORK_OUT, sequence) for sequence in range(1, 101)]
    numbers = [bus.decode(COMPLETED, each).result["echo"]["number"] for each in told if each]  # type: ignore[index,call-overload]
    assert sorted(numbers) == list(range(100))
    assert all(runs == 1 for runs in worker.runs.values())


async def test_killed_together_with_nats_nothing_is_lost(nats: NatsProcess, marshaling: Marshaling, worker: Worker):
    marshaling.start()
    await marshaling.ready()
    await worker.open()
    receipts = await submit_all(marshaling, 300)
    marshaling.kill()
    await nats.restart_after_kill()
    marshaling.start()
    await eventually(lambda: done(marshaling, 300), 60)

    totals = await marshaling.totals()
    assert (totals["admitted"], totals["completed"]) == (300, 300)
    assert set(worker.runs) == set(receipts)


async def test_when_nats_is_killed_under_it_the_queue_goes_on(
    nats: NatsProcess, marshaling: Marshaling, worker: Worker
):
    marshaling.start()
    await marshaling.ready()
    await worker.open()
    submitting = asyncio.create_task(submit_all(marshaling, 300))
    for _ in range(2):
        await asyncio.sleep(0.4)
        await nats.restart_after_kill()
    await submitting
    await eventually(lambda: done(marshaling, 300), 60)

    assert (await marshaling.totals())["completed"] == 300
    assert marshaling.process is not None
    assert marshaling.process.poll() is None


async def test_a_leader_that_was_halted_and_replaced_changes_nothing_when_it_wakes(
    marshaling: Marshaling, worker: Worker
):
    marshaling.start()
    await marshaling.ready()
    halted = marshaling.process
    assert halted is not None
    await worker.open()
    submitting = asyncio.create_task(submit_all(marshaling, 100))
    await asyncio.sleep(0.3)
    try:
        halted.send_signal(signal.SIGSTOP)
        port = free_port()
        marshaling.environment["WORK_MARSHALING_PORT"] = str(port)
        marshaling.start()
        await marshaling.move(f"http://127.0.0.1:{port}")
        submitting.cancel()
        await submit_all(marshaling, 400)
        halted.send_signal(signal.SIGCONT)
        await eventually(lambda: done(marshaling, 400), 60)

        totals = await marshaling.totals()
        assert (totals["admitted"], totals["completed"]) == (400, 400)
        assert await asyncio.to_thread(halted.wait, 20) == 1
    finally:
        halted.kill()
        halted.wait()


async def test_a_second_instance_ends_the_first_loudly(marshaling: Marshaling, worker: Worker):
    marshaling.start()
    await marshaling.ready()
    first = marshaling.process
    assert first is not None
    marshaling.environment["WORK_MARSHALING_PORT"] = "0"
    marshaling.start()
    try:

        async def replaced() -> bool:
            with contextlib.suppress(httpx.TransportError):
                await marshaling.client.post("/api/v1/work/submit", json={"work_type": "echo"})
            return first.poll() is not None

        await eventually(replaced, 30)
        assert first.returncode == 1
        assert "another writer took over the log" in marshaling.output.read_text()
    finally:
        first.kill()
