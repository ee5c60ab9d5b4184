"""Payloads and results that are too large for a message."""

import json
from collections import deque
from dataclasses import replace

import pytest

from libs.common.contracts.base import ObjectRef
from libs.common.contracts.streams import WORK_IN, WORK_OBJECTS
from libs.common.contracts.work_events import RunAgain
from libs.common.contracts.work_marshaling import COMPLETED, SubmitMany, WorkCompleted, WorkItem, WorkStatus
from libs.common.errors import Conflict, Malformed, TooLarge
from services.work_marshaling.model import Cancel
from tests.unit.work_marshaling.house import House, Instance, Node, status_of, submit, view_of

LARGE = {"text": "é" * 400_000}
OLD_SECONDS = 700


async def _node(house: House, instance: Instance) -> Node:
    node = Node(house, instance.bus, "n1")
    await node.open(slots=100)
    return node


async def _sweep(house: House, instance: Instance) -> list[str]:
    """Some minutes pass, and what nobody needs is removed."""
    await house.pass_time(1)
    house.clock.advance(OLD_SECONDS)
    await instance.large.sweep(instance.leading.present.term.memory, deque())
    return list(await instance.bus.objects(WORK_OBJECTS).names())


async def test_a_large_payload_travels_as_an_object():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        await submit(instance, payload=LARGE)
        given = await node.takes()

        assert given.payload is None
        assert given.payload_ref is not None
        assert json.loads(await instance.bus.objects(WORK_OBJECTS).get(given.payload_ref)) == LARGE
        assert given.payload_bytes == given.payload_ref.bytes


async def test_a_large_payload_survives_a_checkpoint_and_a_restart():
    house = House()
    async with house.marshaling() as before:
        await submit(before, payload=LARGE)
        before.leading.present.term.journal.checkpoint_wanted = True
        await submit(before, work_type="other")
        await house.settle()
    async with house.marshaling() as after:
        assert (await (await _node(house, after)).takes()).payload_ref is not None


async def test_the_same_large_item_twice_is_one():
    house = House()
    async with house.marshaling() as instance:
        first = await instance.marshaling.submit(WorkItem(work_id="mine", work_type="chat", payload=LARGE))
        again = await instance.marshaling.submit(WorkItem(work_id="mine", work_type="chat", payload=LARGE))
        with pytest.raises(Conflict):
            await submit(instance, work_id="mine", payload={"text": "y" * 900_000})

        assert (first.duplicate, again.duplicate) == (False, True)
        assert len(await instance.bus.objects(WORK_OBJECTS).names()) == 1


async def test_a_batch_may_hold_large_items_and_small_ones():
    house = House()
    async with house.marshaling() as instance:
        items = ({"work_type": "chat", "payload": LARGE}, {"work_type": "chat", "payload": {"a": 1}})
        answers = await instance.marshaling.submit_many(SubmitMany(items=items))

        assert answers.accepted == 2


async def test_a_payload_beyond_all_limits_is_refused_with_its_size():
    house = House()
    async with house.marshaling() as instance:
        with pytest.raises(TooLarge) as refused:
            await submit(instance, payload={"text": "x" * (33 * 1024 * 1024)})

        assert (refused.value.details["field"], refused.value.details["limit"]) == ("payload", 32 * 1024 * 1024)


async def test_a_large_result_is_told_and_kept_as_long_as_its_item_is_at_hand():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        work_id = await submit(instance)
        given = await node.takes()
        content = json.dumps("r" * 600_000).encode()
        ref = await instance.bus.objects(WORK_OBJECTS).put(f"result-{given.attempt_token}", content)
        told = WorkCompleted(work_id=work_id, attempt_token=given.attempt_token, node_id="n1", result_ref=ref)
        await instance.bus.append(COMPLETED, told, message_id=None)
        await house.settle()

        assert (await instance.asking.result(work_id, 0)).result == "r" * 600_000
        assert (await view_of(instance, work_id)).result_bytes == len(content)
        assert await _sweep(house, instance) == [ref.name]


async def test_what_no_item_at_hand_names_is_removed_after_a_while():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        await instance.bus.objects(WORK_OBJECTS).put("orphan", b"x")
        waiting = await submit(instance, payload=LARGE, requirements={"node_ids": ["absent"]})
        done = await submit(instance, payload=LARGE)
        await node.complete(await node.takes())
        assert await status_of(instance, done) is WorkStatus.COMPLETED
        ref = instance.leading.present.term.memory.items[waiting].spec.payload_ref

        assert isinstance(ref, ObjectRef)
        assert await _sweep(house, instance) == [ref.name]


async def test_an_object_that_was_just_put_stays():
    house = House()
    async with house.marshaling() as instance:
        await instance.bus.objects(WORK_OBJECTS).put("fresh", b"x")
        house.clock.advance(300)
        await instance.large.sweep(instance.leading.present.term.memory, deque())

        assert await instance.bus.objects(WORK_OBJECTS).names() == ["fresh"]


async def test_an_object_whose_message_was_not_read_yet_stays():
    house = House()
    async with house.marshaling() as instance:
        await instance.bus.objects(WORK_OBJECTS).put("named-by-what-comes", b"x")
        memory = instance.leading.present.term.memory
        await submit(instance)
        memory.in_seq -= 1

        assert await _sweep(house, instance) == ["named-by-what-comes"]


async def test_an_object_whose_outcome_was_not_read_yet_stays():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        await instance.bus.objects(WORK_OBJECTS).put("named-by-what-comes", b"x")
        await submit(instance)
        await node.complete(await node.takes())
        instance.leading.present.term.memory.out_seq -= 1

        assert await _sweep(house, instance) == ["named-by-what-comes"]


async def test_a_payload_that_cannot_be_kept_holds_up_nothing():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        async with house.server.connect("operator") as operator:
            await operator.ensure_stream(replace(WORK_OBJECTS.stream, max_bytes=1_000))
        work_id = await submit(instance, payload={"text": "x" * 50_000}, max_attempts=1)
        await node.fail(await node.takes())
        await house.pass_time(3)
        memory = instance.leading.present.term.memory

        assert (work_id in memory.unarchived, list(memory.far_items())) == (False, [])


async def test_the_payload_of_an_item_that_came_to_nothing_is_kept_to_run_it_again():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        work_id = await submit(instance, payload={"text": "x" * 50_000}, max_attempts=1)
        await node.fail(await node.takes())
        await house.pass_time(3)
        state = await instance.bus.stream_state(WORK_IN)
        await instance.bus.purge(WORK_IN, below=state.last_sequence + 1)
        await instance.again.replay(work_id, RunAgain())

        assert (await node.takes(2)).payload == {"text": "x" * 50_000}


@pytest.mark.parametrize("payload", [LARGE, {"text": "x" * 5_000}])
async def test_a_cancelled_item_can_be_run_again_while_its_payload_is_there(payload: dict[str, str]):
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance, payload=payload)
        instance.leading.present.term.happen(work_id, Cancel())
        await house.pass_time(3)
        again = await instance.again.retry(work_id, RunAgain())
        node = await _node(house, instance)
        given = await node.takes()

        assert given.work_id == again.work_id
        if given.payload_ref is not None:
            assert json.loads(await instance.bus.objects(WORK_OBJECTS).get(given.payload_ref)) == payload
        else:
            assert given.payload == payload


async def test_a_payload_and_a_reference_to_one_are_too_much():
    house = House()
    async with house.marshaling() as instance:
        ref = await instance.bus.objects(WORK_OBJECTS).put("mine", b'{"a": 1}')
        with pytest.raises(Malformed, match="payload_ref"):
            await submit(instance, payload={"a": 1}, payload_ref=ref)


async def test_a_submitter_may_put_its_payload_into_the_store_itself():
    house = House()
    async with house.marshaling() as instance:
        ref = await instance.bus.objects(WORK_OBJECTS).put("mine", b'{"a": 1}')
        await submit(instance, payload={}, payload_ref=ref)

        assert (await (await _node(house, instance)).takes()).payload_ref == ref
