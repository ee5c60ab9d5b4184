"""An ended item runs again as a new one."""

from dataclasses import replace
from datetime import timedelta

import pytest

from libs.common.contracts.streams import WORK_IN
from libs.common.contracts.work_events import RunAgain
from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.errors import Conflict, NotFound, Unavailable
from tests.unit.work_marshaling.house import RULES, House, Instance, Node, status_of, submit, view_of

FORGETFUL = replace(RULES, ended_most=0, upkeep_seconds=1.0)
ARCHIVED_SECONDS = 3.0


async def _dead(house: House, instance: Instance, node: Node, **fields: object) -> str:
    work_id = await submit(instance, max_attempts=1, **fields)
    await node.fail(await node.takes(len(node.taken) + 1))
    assert await status_of(instance, work_id) is WorkStatus.DEAD
    return work_id


async def _node(house: House, instance: Instance) -> Node:
    node = Node(house, instance.bus, "n1")
    await node.open(slots=100)
    return node


@pytest.mark.parametrize("archived", [False, True])
async def test_a_dead_item_is_replayed_as_a_new_one(archived: bool):
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        work_id = await _dead(house, instance, node, labels={"team": "x"}, payload={"text": "\0 café"})
        await house.pass_time(ARCHIVED_SECONDS if archived else 0)
        assert (await view_of(instance, work_id)).archived is archived
        again = await instance.again.replay(work_id, RunAgain())
        given = await node.takes(2)

        assert (given.work_id, given.payload, given.labels) == (again.work_id, {"text": "\0 café"}, {"team": "x"})
        assert (await view_of(instance, again.work_id)).retry_of == work_id
        assert await status_of(instance, work_id) is WorkStatus.DEAD


@pytest.mark.parametrize("archived", [False, True])
async def test_a_retry_is_tried_as_often_and_as_soon_as_the_first_was(archived: bool):
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        work_id = await _dead(house, instance, await _node(house, instance), retry_delay_seconds=7.0, priority=2)
        await house.pass_time(ARCHIVED_SECONDS if archived else 0)
        again = await instance.again.retry(work_id, RunAgain())
        spec = instance.leading.present.term.memory.items[again.work_id].spec

        assert (spec.max_attempts, spec.retry_delay_seconds, spec.priority) == (1, 7.0, 2)


async def test_an_item_that_completed_can_be_retried_and_not_replayed():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        work_id = await submit(instance)
        await node.complete(await node.takes())
        with pytest.raises(Conflict):
            await instance.again.replay(work_id, RunAgain())
        await instance.again.retry(work_id, RunAgain())

        assert (await node.takes(2)).payload == {"prompt": "hi"}


async def test_an_open_item_cannot_be_retried():
    house = House()
    async with house.marshaling() as instance:
        with pytest.raises(Conflict):
            await instance.again.retry(await submit(instance), RunAgain())


async def test_what_is_not_there_cannot_be_retried():
    house = House()
    async with house.marshaling() as instance:
        with pytest.raises(NotFound):
            await instance.again.retry("nothing", RunAgain())


async def test_a_retry_that_names_its_id_can_be_asked_for_twice():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        work_id = await _dead(house, instance, node)
        first = await instance.again.retry(work_id, RunAgain(work_id="second-try"))
        second = await instance.again.retry(work_id, RunAgain(work_id="second-try"))

        assert (first.duplicate, second.duplicate, first.work_id) == (False, True, second.work_id)


async def test_moments_that_have_passed_do_not_hold_for_a_retry():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        soon = house.clock.now() + timedelta(seconds=60)
        work_id = await _dead(house, instance, node, deadline=soon)
        house.clock.advance(120)
        again = await instance.again.retry(work_id, RunAgain())
        await node.announce(slots=100)

        assert (await node.takes(2)).deadline is None
        assert (await node.takes(2)).work_id == again.work_id


async def test_a_payload_that_is_gone_is_said_to_be_gone():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        work_id = await submit(instance, payload={"text": "x" * 5000})
        await node.complete(await node.takes())
        await house.pass_time(ARCHIVED_SECONDS)

        with pytest.raises(Conflict, match="5011 bytes"):
            await instance.again.retry(work_id, RunAgain())


async def test_an_archive_that_is_away_is_no_reason_to_say_that_a_payload_is_gone():
    house = House()
    async with house.marshaling() as instance:
        node = await _node(house, instance)
        work_id = await _dead(house, instance, node)
        await house.pass_time(ARCHIVED_SECONDS)
        await instance.bus.purge(WORK_IN, below=100)
        house.archive.go_away()

        with pytest.raises(Unavailable):
            await instance.again.retry(work_id, RunAgain())
