"""NATS lost its disk and came back with nothing: what was open is lost, and told; work goes on."""

import pytest
from structlog.testing import capture_logs

from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.errors import NotFound
from tests.unit.work_marshaling.house import House, Node, status_of, submit


async def lose_the_disk(house: House) -> None:
    house.server.stop()
    await house.pass_time(1)
    house.server.start(emptied=True)


async def test_the_leader_takes_work_again_and_says_how_much_is_lost(house: House):
    async with house.marshaling() as marshaling:
        for _ in range(3):
            await submit(marshaling)
        with capture_logs() as lines:
            await lose_the_disk(house)
            await house.pass_time(5)

        assert [line["open_items"] for line in lines if line["event"] == "work_lost"] == [3]
        assert marshaling.ended is None
        async with house.bus("node_agent") as bus:
            node = Node(house, bus, "n1")
            await node.open()
            work_id = await submit(marshaling)
            await house.pass_time(1)
            assert [each.work_id for each in node.taken] == [work_id]


async def test_of_two_instances_one_leads_again(house: House):
    async with house.marshaling() as first, house.instance() as second:
        await submit(first)
        await lose_the_disk(house)
        await house.pass_time(10)

        leaders = [each for each in (first, second) if each.leading.leads()]
        assert (first.ended, second.ended) == (None, None)
        assert len(leaders) == 1
        work_id = await submit(second)
        assert await status_of(leaders[0], work_id) is WorkStatus.PENDING


async def test_what_is_unknown_afterwards_is_not_said_to_be_on_its_way_into_the_archive(house: House):
    async with house.marshaling() as marshaling, house.bus("node_agent") as bus:
        node = Node(house, bus, "n1")
        await node.open(slots=2)
        for _ in range(2):
            await submit(marshaling)
            await house.pass_time(1)
            await node.complete(node.taken[-1])
            await house.pass_time(2)
        await lose_the_disk(house)
        await house.pass_time(5)

        with pytest.raises(NotFound):
            await status_of(marshaling, "never-seen")
