"""Two instances: one leads, the other follows the log and goes on where the first one stops."""

import asyncio
from dataclasses import replace

import pytest

from libs.common.contracts.log import LogEpoch
from libs.common.contracts.streams import WORK_LOG, WORK_MARSHALING
from libs.common.contracts.work_leading import Leader
from libs.common.contracts.work_log import EPOCH
from libs.common.contracts.work_marshaling import WORK_STATUS, WorkLookup, WorkStatus, WorkView
from libs.common.errors import Conflict, StreamFull, Unavailable
from libs.common.kit.service import Remark
from services.work_marshaling.election import LEASE_KEY
from tests.unit.work_marshaling.house import LEASE_SECONDS, RULES, House, Instance, Node, status_of, submit
from tests.unit.work_marshaling.test_adversity import fill

OFTEN = replace(RULES, checkpoint_records=5, upkeep_seconds=1.0)


async def lose_lease(house: House) -> None:
    """As when the leader could not renew it in time."""
    async with house.server.connect("operator") as transport:
        entry = await transport.get(WORK_MARSHALING.name, LEASE_KEY)
        assert entry is not None
        await transport.delete(WORK_MARSHALING.name, LEASE_KEY, revision=entry.revision)


async def asked(instance: Instance, work_id: str) -> WorkView:
    """Over NATS, at this instance."""
    return await instance.handing.by_leader(WORK_STATUS, instance.asking.look_up)(WorkLookup(work_id=work_id))


async def test_of_two_one_leads_and_the_other_says_for_whom_it_stands_by(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await house.pass_time(10)

        assert (first.leading.leads(), second.leading.leads()) == (True, False)
        told = await second.marshaling.problem()
        assert isinstance(told, Remark)
        assert first.election.instance.instance_id in told
        assert await first.marshaling.problem() is None


async def test_work_may_be_submitted_to_one_that_stands_by(house: House):
    async with house.marshaling() as first, house.instance() as second:
        work_id = await submit(second, work_id="w", payload={"prompt": "one"})

        assert await status_of(first, work_id) is WorkStatus.PENDING
        again = await second.marshaling.submit(await _same(second, "one"))
        assert again.duplicate
        with pytest.raises(Conflict):
            await second.marshaling.submit(await _same(second, "another"))
        without_id = await submit(second)
        assert await status_of(first, without_id) is WorkStatus.PENDING


async def _same(instance: Instance, prompt: str):
    from tests.unit.work_marshaling.builders import submission

    return submission(work_id="w", payload={"prompt": prompt})


async def test_what_only_the_leader_knows_it_is_asked_by_the_other(house: House):
    async with house.marshaling() as first, house.instance() as second, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        work_id = await submit(first)
        await node.complete(await node.takes(), "done")

        assert (await asked(second, work_id)).result == "done"
        with pytest.raises(Unavailable, match=first.election.instance.instance_id):
            await status_of(second, work_id)


async def test_one_that_stands_by_leads_when_the_leader_is_killed(house: House):
    async with house.bus("test") as bus, house.instance() as waiting:
        await house.led_by(waiting)
        node = Node(house, bus, "n1")
        async with house.instance() as second:
            await house.pass_time(1)
            assert not second.leading.leads()
        async with house.instance() as second:
            await node.open(slots=1)
            given_id, pending_id = await submit(waiting), await submit(waiting)
            given = await node.takes()
            await lose_lease(house)
            await house.led_by(second)

            assert (await node.takes(2)).attempt_token == given.attempt_token
            await node.complete(given)
            assert await status_of(second, given_id) is WorkStatus.COMPLETED
            assert await status_of(second, pending_id) is WorkStatus.ASSIGNED


async def test_a_leader_that_is_gone_is_replaced_before_its_lease_ends(house: House):
    async with house.instance() as second:
        await house.led_by(second)
        async with house.instance() as third:
            await lose_lease(house)
            await house.led_by(third)
            kept = await submit(third)
            killed = house.clock.monotonic()
        await house.led_by(second)

        assert house.clock.monotonic() - killed < LEASE_SECONDS
        assert await status_of(second, kept) is WorkStatus.PENDING


async def test_a_lease_that_is_given_back_is_taken_at_once(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await submit(first)
        async with first.election.released():
            pass
        left = house.clock.monotonic()
        await house.led_by(second)

        assert house.clock.monotonic() - left <= 0.6


async def test_a_leader_that_was_replaced_stands_by_and_can_lead_again(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await submit(first, work_id="w")
        for old, new in ((first, second), (second, first), (first, second)):
            await lose_lease(house)
            await house.led_by(new)
            await house.pass_time(2)
            assert not old.leading.leads()
            assert old.ended is None
            assert await status_of(new, "w") is WorkStatus.PENDING
            assert (await asked(old, "w")).status is WorkStatus.PENDING


async def test_a_log_that_another_took_over_is_left_to_it_before_anything_is_told(house: House):
    async with house.marshaling() as first, house.instance() as second, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        await lose_lease(house)
        await house.led_by(second)
        if first.leading.leads():  # it does not know yet: nothing it decides may leave it
            first.leading.present.term.wake()
        await submit(second)
        await node.takes()
        await house.pass_time(5)

        assert len({given.attempt_token for given in node.taken}) == 1


async def test_one_that_stands_by_knows_what_a_checkpoint_left_of_the_log(house: House):
    async with house.marshaling(OFTEN) as first, house.instance(OFTEN) as second, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        made = []
        for number in range(1, 30):
            made.append(await submit(first, payload={"number": number}))
            await node.complete(await node.takes(number), number)
            await house.pass_time(0.5)
        assert (await bus.stream_state(WORK_LOG)).first_sequence > 20
        await lose_lease(house)
        await house.led_by(second)

        assert [(await second.asking.result(work_id, 0)).result for work_id in made] == list(range(1, 30))
        totals = (await second.marshaling.stats()).totals
        assert (totals["admitted"], totals["completed"]) == (29, 29)


async def test_a_full_log_refuses_new_work_at_both(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await submit(first)
        await fill(house, "compute.work.log.v1")
        await submit(first)  # it lies in WORK_IN: that the log has no room shows only now
        await house.pass_time(3)

        for each in (first, second):
            with pytest.raises(StreamFull, match="WORK_LOG is full"):
                await submit(each)


async def test_who_was_asked_in_vain_says_so_when_another_leads(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await submit(first, work_id="w")
        stuck = asyncio.Event()

        async def never(asked: WorkLookup) -> WorkView:
            await stuck.wait()
            raise AssertionError

        first.handing.by_leader(WORK_STATUS, never)
        asking = asyncio.create_task(asked(second, "w"))
        await house.settle()
        assert not asking.done()
        await lose_lease(house)
        await house.led_by(second)

        with pytest.raises(Unavailable, match="leads no more"):
            await asking


async def test_a_lease_of_somebody_who_was_never_there_holds_nobody_up(house: House):
    async with house.bus("stranger") as bus:
        told = Leader(holder="nobody", node_id="nowhere", port=1)
        await bus.put(WORK_MARSHALING, LEASE_KEY, told, revision=0)
        async with house.marshaling() as queue:
            assert await status_of(queue, await submit(queue)) is WorkStatus.PENDING


async def test_a_leader_that_was_replaced_while_it_stood_still_stops_nothing(house: House):
    async with house.marshaling() as first, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        told = LogEpoch(epoch=2, holder="another", at=house.clock.now(), checkpoint=False, origins={})
        await bus.append(EPOCH, told, message_id="another")
        dispatcher = first.leading.present.dispatcher

        dispatcher.stop("n1", "token-of-the-other", "this attempt holds no lease")
        await house.settle()

        assert node.stopped == []
        assert not first.leading.leads()


async def test_a_stop_by_a_leader_that_stood_still_after_it_asked_is_known_by_its_epoch(house: House, monkeypatch):
    async with house.marshaling() as first, house.instance() as second, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        replaced = first.leading.present
        monkeypatch.setattr(replaced.term.journal, "lead", _it_led_when_it_asked)
        await lose_lease(house)
        await house.led_by(second)
        await submit(second)
        await node.takes()

        going_on = asyncio.create_task(replaced.dispatcher.run())
        replaced.dispatcher.stop("n1", "token-of-the-other", "this attempt holds no lease")
        await house.settle()
        going_on.cancel()

        assert node.stops[0].log_made == node.offers[0].log_made
        assert node.stops[0].epoch < node.offers[0].epoch


async def _it_led_when_it_asked() -> None:
    pass
