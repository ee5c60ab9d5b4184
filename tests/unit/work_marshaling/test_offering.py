"""What a node is told of an attempt, and what follows when it was told before."""

from libs.common.bus.bus import Bus
from libs.common.contracts.work_marshaling import WorkStatus
from tests.unit.work_marshaling.house import RULES, House, Instance, Node, status_of, submit, view_of


async def told_nothing(house: House, node: Node) -> None:
    """The node takes what it is offered, and its answer is lost."""
    node.answers = False
    await house.pass_time(1)
    assert node.offers
    node.answers = True


async def test_a_token_names_the_run_of_the_agent_it_was_made_for(queue: Instance, node: Node):
    await submit(queue)

    assert ((await node.takes()).attempt_token or "").endswith(".b1")


async def test_a_node_is_told_when_it_may_have_been_told_before(house: House, queue: Instance, node: Node):
    node.answers = False
    await submit(queue)
    await house.pass_time(1)
    node.answers = True
    await node.takes()

    assert [each.again for each in node.offers[:2]] == [False, True]


async def test_a_new_leader_tells_that_a_node_may_have_been_told_before(house: House, bus: Bus):
    node = Node(house, bus, "n1")
    async with house.marshaling() as before:
        await node.open()
        await submit(before)
        await node.takes()
    async with house.marshaling():
        await node.takes(2)

    assert [each.again for each in node.offers] == [False, True]


async def test_an_attempt_that_a_run_of_the_agent_which_is_over_may_have_begun_is_not_given_back(
    house: House, queue: Instance, node: Node
):
    node.answers = False
    work_id = await submit(queue)
    await house.pass_time(1)
    node.answers, node.other_run = True, True
    await house.pass_time(2)
    assert await status_of(queue, work_id) is WorkStatus.ASSIGNED

    node.other_run = False
    await node.announce(boot_id="b2")
    await house.pass_time(RULES.lease_seconds + 1)
    (lost, *_) = (await view_of(queue, work_id)).attempts
    assert lost.outcome == "expired"


async def test_an_attempt_of_a_run_that_is_over_and_was_never_told_is_given_anew(
    house: House, queue: Instance, node: Node
):
    node.other_run = True
    work_id = await submit(queue)
    await house.settle()
    assert await status_of(queue, work_id) is WorkStatus.PENDING

    node.other_run = False
    await node.announce(boot_id="b2")
    assert ((await node.takes()).attempt_token or "").endswith(".b2")
