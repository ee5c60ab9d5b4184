"""Standstills, calendars that jump, nodes that cannot be asked: none of it costs an attempt or runs a job twice."""

import asyncio
from contextlib import suppress
from dataclasses import replace

from libs.common.contracts.streams import WORK_IN
from libs.common.contracts.work_log import RECORD
from libs.common.contracts.work_marshaling import SUBMITTED, WorkBatch, WorkItem, WorkStatus
from libs.common.errors import StreamFull
from tests.unit.work_marshaling.house import RULES, House, Node, publish_plainly, status_of, submit, view_of


async def test_outcomes_are_read_also_while_as_many_items_are_open_as_may_be(house: House):
    async with house.marshaling(replace(RULES, open_most=2)) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open(slots=10)
        for number in range(4):
            await publish_plainly(bus, payload={"number": number})
        await node.takes(2)
        for given in tuple(node.taken):
            await node.complete(given)

        await node.takes(4)
        assert (await queue.marshaling.stats()).by_status["completed"] >= 2


async def test_a_standstill_that_is_shorter_than_a_lease_with_its_renewals_costs_nobody_the_lease(house: House):
    async with house.marshaling(replace(RULES, lease_seconds=2.0)) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        work_id = await submit(queue)
        given = await node.takes()
        await node.progress(given)
        house.clock.advance(4)
        await house.settle()
        await node.progress(given)
        await house.pass_time(1)

        view = await view_of(queue, work_id)
        assert (view.status, len(view.attempts)) == (WorkStatus.RUNNING, 1)


async def test_a_node_that_let_a_lease_end_is_given_nothing_until_it_is_heard(house: House):
    """One that stands still would take more with each lease that ends, and each costs its item an attempt."""
    async with house.marshaling(replace(RULES, lease_seconds=2.0)) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open(slots=1)
        lost, waiting = await submit(queue), await submit(queue)
        await node.takes()
        await house.pass_time(4)
        assert (await view_of(queue, lost)).attempts[0].outcome == "expired"
        assert [given.work_id for given in node.taken] == [lost]

        await node.announce(slots=1)
        assert {(await node.takes(2)).work_id} <= {lost, waiting}


async def test_a_node_that_is_heard_and_lost_one_lease_is_given_more(house: House):
    """One job without a word says nothing about the others."""
    async with house.marshaling(replace(RULES, lease_seconds=2.0)) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open(slots=1)
        await submit(queue)
        await submit(queue)
        await node.takes()
        await house.pass_time(1.5)
        await node.announce(slots=1)
        await house.pass_time(1.5)

        assert len(node.taken) == 2


async def test_a_node_that_leaves_a_request_unanswered_is_given_nothing_more_until_it_is_heard(house: House):
    async with house.marshaling() as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        node.hangs = True
        await node.open(slots=2)
        first = await submit(queue)
        await house.pass_time(6)
        second = await submit(queue)
        await house.pass_time(1)
        assert await status_of(queue, second) is WorkStatus.PENDING

        node.hangs = False
        await node.announce(slots=2)
        await node.takes(2)
        assert {given.work_id for given in node.taken} == {first, second}


async def test_a_retry_is_not_put_off_by_a_calendar_that_was_set_back(house: House):
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling() as before:
            await node.open()
            await submit(before)
            await node.fail(await node.takes())
        house.clock.set_calendar(-3600)
        async with house.marshaling():
            await node.announce()
            assert (await node.takes(2)).attempt == 2


async def test_after_a_restart_an_attempt_whose_node_cannot_be_asked_keeps_its_lease(house: House):
    """Nobody knows whether the node took it before: it may be running there."""
    async with house.bus("other") as bus:
        async with house.marshaling() as before, house.bus("first") as gone:
            first = Node(house, gone, "n1")
            await first.open()
            work_id = await submit(before)
            await first.takes()
        async with house.marshaling() as after:
            other = Node(house, bus, "n2")
            await other.open()
            await house.pass_time(RULES.lease_seconds - 2)

            view = await view_of(after, work_id)
            assert (view.status, len(view.attempts), other.taken) == (WorkStatus.ASSIGNED, 1, [])


async def test_items_of_a_batch_that_was_not_read_to_its_end_are_not_forgotten(house: House):
    """Until then the whole batch is read again after a restart: who is not known would be admitted once more."""
    rules = replace(RULES, ended_most=0, open_most=200, upkeep_seconds=1.0)
    items = tuple(WorkItem(work_type="chat", model_name=None if number < 100 else "absent") for number in range(500))
    async with house.bus("test") as bus:
        node = Node(house, bus, "n1")
        async with house.marshaling(rules):
            await node.open(slots=100)
            await bus.append(SUBMITTED, WorkBatch(items=items), message_id=None)
            await node.takes(100)
            for given in tuple(node.taken[:100]):
                await node.complete(given)
            await house.pass_time(3)
        async with house.marshaling(rules):
            await node.announce(slots=100)
            await house.pass_time(3)

    assert len({given.work_id for given in node.taken}) == len(node.taken)


async def test_a_payload_is_not_trimmed_before_the_end_of_its_item_is_on_disk():
    house = House(stream_bytes=4_000_000)
    async with house.bus("test") as bus, house.marshaling(replace(RULES, upkeep_seconds=10_000)) as queue:
        node = Node(house, bus, "n1")
        await node.open()
        await submit(queue, payload={"text": "x" * 50_000})
        given = await node.takes()
        for _ in range(1_100):
            await publish_plainly(bus, model_name="absent")
        await house.settle()
        await fill(house, RECORD.subject)
        await node.complete(given)
        tidying = asyncio.create_task(queue.leading.present.upkeep.tidy())
        await house.settle()
        tidying.cancel()

        assert (await bus.stream_state(WORK_IN)).first_sequence == 1


async def fill(house: House, subject: str) -> None:
    """As a stranger may: nobody can write to this stream any more."""
    async with house.server.connect("stranger") as transport:
        for size in (100_000, 1000, 10):
            with suppress(StreamFull):
                while True:
                    await transport.append(subject, b"x" * size, {}, message_id=None, expect=None, timeout=5)
