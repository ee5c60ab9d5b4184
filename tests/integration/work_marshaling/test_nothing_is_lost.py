"""On a real nats-server: `kill -9` at any instant, and every accepted item still ends with exactly one result."""

import asyncio
import random

import pytest

from libs.common.bus.bus import Bus
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import COMPLETED, SUBMIT, WorkItem
from tests.integration.work_marshaling.conftest import Marshaling, Worker, done, eventually, submit_all
from tests.nats_process import NatsProcess

ITEMS = 1_000


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
