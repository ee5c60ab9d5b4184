"""Nodes that are gone do not stay for ever, and nobody is given to one that was forgotten."""

from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given

from libs.common.contracts.node_registry import NodeState, NodeStatus
from services.work_marshaling.leases import Leases
from services.work_marshaling.nodes import Nodes
from tests.unit.work_marshaling.builders import NOW
from tests.unit.work_marshaling.house import RULES, House, Node, workload
from tests.unit.work_marshaling.test_scheduling import item, queue_of

KEPT = 100.0


def known(*names: str, most: int = 1000) -> Nodes:
    nodes = Nodes(silence_seconds=30, kept_seconds=KEPT, most=most)
    for number, name in enumerate(names):
        nodes.hear_workload(workload(name), float(number))
    return nodes


def test_a_node_that_said_nothing_for_long_is_forgotten_and_told_as_gone():
    nodes = known("n1", "n2")
    seen = nodes.version

    assert nodes.forget(KEPT) == ()
    assert nodes.forget(KEPT + 0.5) == ("n1",)
    assert [node.node_id for node in nodes.all()] == ["n2"]
    assert [(node.node_id, node.agent) for node in nodes.changed_since(seen)] == [("n1", None)]


def test_what_the_registry_says_of_a_node_is_not_forgotten_with_it():
    nodes = known("n1")
    nodes.hear_status(
        NodeStatus(node_id="n1", state=NodeState.OFFLINE, previous=None, reason="", at=NOW, draining=True)
    )

    assert nodes.forget(10 * KEPT) == ()


def test_of_too_many_nodes_those_go_that_are_silent_for_longest():
    nodes = known("n1", "n2", "n3", "n4", most=2)

    assert nodes.forget(5.0) == ()
    assert nodes.forget(32.5) == ("n1", "n2")


@given(st.lists(st.sampled_from(["hear", "forget", "choose"]), max_size=30), st.integers(1, 3))
def test_nothing_is_given_to_a_forgotten_node_however_rarely_one_looks(happenings: list[str], names: int):
    nodes, leases, now = known(), Leases(), 0.0
    queue = queue_of(*(item(f"w{number}", number) for number in range(40)))
    for number, happening in enumerate(happenings):
        now += KEPT / 2
        if happening == "hear":
            nodes.hear_workload(workload(f"n{number % names}"), now)
        elif happening == "forget":
            nodes.forget(now)
        else:
            choices = queue.choose(nodes, leases.free(nodes), now=NOW.timestamp(), most=1)
            assert all(choice.node_id in nodes for choice in choices)


async def test_the_leader_forgets_nodes_as_time_passes(house: House):
    rules = replace(RULES, node_kept_seconds=60.0, upkeep_seconds=1.0)
    async with house.marshaling(rules) as queue, house.bus("test") as bus:
        await Node(house, bus, "n1").open()
        assert "n1" in queue.leading.nodes
        await house.pass_time(65, step=1.0)

        assert "n1" not in queue.leading.nodes
        assert "n1" not in (await queue.marshaling.stats()).nodes
