"""Whatever was acknowledged is there after a restart, and nothing fills up in the long run."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from libs.common.bus.bus import Bus, Receipt, Stored
from libs.common.contracts.streams import WORK_IN, WORK_LOG, WORK_OUT, Stream
from libs.common.contracts.work_log import Archived
from libs.common.contracts.work_marshaling import CancelWork, SubmitMany, WorkStatus
from libs.common.errors import Conflict, NotFound, StreamFull, Unavailable
from services.work_marshaling.machine import decide
from services.work_marshaling.model import Completed, Given
from tests.unit.work_marshaling.builders import NOW, POLICY, engine, memory, submitted
from tests.unit.work_marshaling.house import (
    RULES,
    House,
    Node,
    publish_plainly,
    status_of,
    submit,
    view_of,
)

OFTEN = replace(RULES, checkpoint_records=5, upkeep_seconds=1.0)


async def test_a_pending_item_is_still_pending(house: House):
    async with house.marshaling() as before:
        work_id = await submit(before, payload={"prompt": "kept"})
    async with house.marshaling() as after, house.bus("test") as bus:
        assert await status_of(after, work_id) is WorkStatus.PENDING
        node = Node(house, bus, "n1")
        await node.open()
        assert (await node.takes()).payload == {"prompt": "kept"}


async def test_what_strangers_publish_while_it_is_down_is_done(house: House):
    async with house.marshaling() as before:
        await submit(before, payload={"number": 20})
    async with house.bus("test") as bus:
        for number in range(20):
            await publish_plainly(bus, payload={"number": number})
        async with house.marshaling() as after:
            node = Node(house, bus, "n1")
            await node.open(slots=100)
            await node.takes(21)
            for given in tuple(node.taken):
                await node.complete(given)
            assert (await after.marshaling.stats()).by_status["completed"] == 21


async def test_an_assigned_item_is_offered_again_with_the_same_token(house: House):
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling() as before:
            await node.open()
            await submit(before)
            first = await node.takes()
        async with house.marshaling() as after:
            again = await node.takes(2)
            assert again.attempt_token == first.attempt_token
            await node.complete(again)
            assert await status_of(after, again.work_id) is WorkStatus.COMPLETED


async def test_a_running_item_keeps_its_attempt_for_a_full_term(house: House):
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling() as before:
            await node.open()
            work_id = await submit(before)
            given = await node.takes()
            await node.progress(given)
            await house.pass_time(25)
        async with house.marshaling() as after:
            await house.pass_time(25)
            assert await status_of(after, work_id) is WorkStatus.RUNNING
            assert len(node.taken) == 1
            await node.complete(given)
            assert await status_of(after, work_id) is WorkStatus.COMPLETED


async def test_a_result_can_still_be_fetched(house: House):
    async with house.bus("test") as bus:
        async with house.marshaling() as before:
            node = Node(house, bus, "n1")
            await node.open()
            work_id = await submit(before)
            await node.complete(await node.takes(), {"text": "kept"})
        async with house.marshaling() as after:
            assert (await after.asking.result(work_id, 0)).result == {"text": "kept"}


async def test_results_that_were_told_together_can_still_be_fetched(house: House):
    async with house.bus("test") as bus:
        async with house.marshaling() as before:
            node = Node(house, bus, "n1")
            await node.open()
            ids = [await submit(before) for _ in range(3)]
            await node.takes(3)
            await node.complete_together({work_id: f"of {work_id}" for work_id in ids}, *node.taken)
        async with house.marshaling() as after:
            found = [(await after.asking.result(work_id, 0)).result for work_id in ids]
            late = (await after.marshaling.stats()).totals.get("late", 0)

    assert found == [f"of {work_id}" for work_id in ids]
    assert late == 0


def test_an_item_is_at_hand_until_the_message_with_its_outcome_is_read_to_the_end():
    kept = memory(ended_most=0)
    given = Given(node_id="n1", token="t1")
    done = Completed(work_id="w", token="t1", out_seq=7, result_bytes=2)
    for event in (submitted("w", 1), given, done):
        for fact in decide(kept.items.get("w"), event, POLICY, NOW, 0.5):
            kept.take(fact)
    kept.take(Archived(work_ids=("w",)))

    kept.in_seq, kept.out_seq = 1, 6
    kept.forget(NOW)
    assert "w" in kept.items
    kept.out_seq = 7
    kept.forget(NOW)
    assert "w" not in kept.items


async def test_an_outcome_that_came_while_it_was_down_counts(house: House):
    async with house.bus("test") as bus:
        async with house.marshaling() as before:
            node = Node(house, bus, "n1")
            await node.open()
            work_id = await submit(before)
            given = await node.takes()
        await node.complete(given)
        async with house.marshaling() as after:
            await house.settle()
            assert await status_of(after, work_id) is WorkStatus.COMPLETED


async def test_a_cancelled_item_stays_cancelled(house: House):
    async with house.marshaling() as before:
        work_id = await submit(before)
        await before.marshaling.cancel(CancelWork(work_id=work_id, reason="enough"))
    async with house.marshaling() as after:
        assert await status_of(after, work_id) is WorkStatus.CANCELLED


async def test_a_retry_that_was_due_meanwhile_is_made(house: House):
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling() as before:
            await node.open()
            await submit(before)
            await node.fail(await node.takes())
        house.clock.advance(60)
        async with house.marshaling():
            await node.announce()
            assert (await node.takes(2)).attempt == 2


async def test_many_restarts_with_checkpoints_in_between_lose_nothing(house: House):
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        made: list[str] = []
        for round_number in range(4):
            async with house.marshaling(OFTEN) as queue:
                await (node.open() if round_number == 0 else node.announce())
                for _ in range(12):
                    made.append(await submit(queue))
                    given = await node.takes(len(made))
                    await node.complete(given, len(made))
                await house.pass_time(2)
        async with house.marshaling() as last:
            assert [(await last.asking.result(work_id, 0)).result for work_id in made] == list(range(1, 49))
            totals = (await last.marshaling.stats()).totals
            assert (totals["admitted"], totals["completed"]) == (48, 48)
            assert (await bus.stream_state(WORK_LOG)).messages < 40


async def test_forgotten_ids_are_known_after_a_checkpoint_and_a_restart(house: House):
    rules = replace(OFTEN, ended_most=1)
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling(rules) as before:
            await node.open()
            for number in range(1, 12):
                await submit(before, work_id=f"w{number}")
                await node.complete(await node.takes(number))
                await house.pass_time(1)
        house.archive.go_away()
        async with house.marshaling(rules) as after:
            with pytest.raises(Unavailable):
                await view_of(after, "w1")
            with pytest.raises(Unavailable):
                await submit(after, work_id="w1")
            with pytest.raises(Conflict):
                await submit(after, work_id="w1", priority=0)


async def test_inputs_that_are_no_longer_needed_are_trimmed(house: House):
    rules = replace(OFTEN, ended_most=10)
    async with house.marshaling(rules), house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open(slots=2_000)
        for number in range(1, 1_101):
            await publish_plainly(bus, payload={"number": number})
        await node.takes(1_100)
        await asyncio.gather(*(node.complete(given) for given in node.taken))
        await house.pass_time(3)

        assert (await bus.stream_state(WORK_IN)).messages < 100
        assert (await bus.stream_state(WORK_OUT)).messages < 100


async def test_a_payload_that_is_still_needed_is_not_trimmed(house: House):
    async with house.marshaling(OFTEN) as queue, house.bus("test") as bus:
        await submit(queue, model_name="absent", payload={"text": "x" * 50_000})
        for _ in range(1_100):
            await publish_plainly(bus, model_name="absent")
        await house.pass_time(3)

        node = Node(house, bus, "n1")
        await node.open(engines=[engine("absent")], slots=1)
        assert (await node.takes()).payload == {"text": "x" * 50_000}


async def test_an_old_open_item_does_not_block_the_trimming(house: House):
    house = House(stream_bytes=1_000_000)
    rules = replace(OFTEN, ended_most=0)
    async with house.bus("test") as bus:
        async with house.marshaling(rules) as queue:
            old = await submit(queue, model_name="absent", payload={"text": "x" * 50_000})
            for _ in range(15):
                work_id = await submit(queue, model_name="absent", payload={"text": "y" * 50_000})
                await queue.marshaling.cancel(CancelWork(work_id=work_id))
            await house.pass_time(3)

            assert (await bus.stream_state(WORK_IN)).first_sequence > 1
        async with house.marshaling(rules) as after:
            node = Node(house, bus, "n1")
            await node.open(engines=[engine("absent")])
            assert (await node.takes()).payload == {"text": "x" * 50_000}
            assert await status_of(after, old) is WorkStatus.ASSIGNED


async def test_results_make_room_for_newer_ones(house: House):
    house = House(stream_bytes=1_000_000)
    async with house.marshaling(OFTEN) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        made: list[str] = []
        for number in range(1, 31):
            made.append(await submit(queue))
            await node.complete(await node.takes(number), "x" * 50_000)
            await house.pass_time(2)
            await node.announce()

        assert await status_of(queue, made[0]) is WorkStatus.COMPLETED
        with pytest.raises(NotFound, match="no longer"):
            await queue.asking.result(made[0], 0)
        assert (await queue.asking.result(made[-1], 0)).result == "x" * 50_000


async def test_a_full_input_refuses_and_loses_nothing(house: House):
    house = House(stream_bytes=200_000)
    async with house.marshaling() as queue:
        kept = [await submit(queue, payload={"text": "x" * 50_000}) for _ in range(3)]
        with pytest.raises(StreamFull):
            await submit(queue, payload={"text": "x" * 90_000})

        assert [await status_of(queue, work_id) for work_id in kept] == [WorkStatus.PENDING] * 3


async def test_work_goes_on_while_a_checkpoint_is_written(house: House):
    many = SubmitMany(items=tuple({"work_type": "chat"} for _ in range(2_000)))
    async with house.bus("test") as bus:
        async with house.marshaling() as before:
            assert (await before.marshaling.submit_many(many)).accepted == 2_000
            before.leading.present.term.journal.checkpoint_wanted = True
            append = before.bus.append

            async def append_slowly(*told: Any, **named: Any) -> Receipt:
                for _ in range(30):
                    await asyncio.sleep(0)
                return await append(*told, **named)

            before.bus.append = append_slowly  # type: ignore[method-assign]
            for _ in range(20):
                await publish_plainly(bus)
                await house.settle()
            kinds = [json.loads(stored.payload).get("kind", "epoch") async for stored in stored_in(bus, WORK_LOG)]
            assert kinds[0] == "epoch"
            assert kinds.index("facts") < kinds.index("done")
        async with house.marshaling() as after:
            assert (await after.marshaling.stats()).by_status["pending"] == 2_020


async def stored_in(bus: Bus, stream: Stream) -> AsyncIterator[Stored]:
    state = await bus.stream_state(stream)
    for sequence in range(state.first_sequence, state.last_sequence + 1):
        stored = await bus.message(stream, sequence)
        if stored is not None:
            yield stored
