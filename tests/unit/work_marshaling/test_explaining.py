"""Why an item waits, and what is said of one that no node could ever run."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from libs.common.bus.bus import Bus
from libs.common.contracts.node_registry import Tier
from libs.common.contracts.streams import WORK_IN
from libs.common.contracts.work_explained import EXPLAIN
from libs.common.contracts.work_marshaling import SubmitMany, WorkItem, WorkLookup
from libs.common.errors import Unsatisfiable
from services.work_marshaling.explaining import explained
from services.work_marshaling.leases import Leases
from tests.unit.work_marshaling.builders import NOW, engine, workload
from tests.unit.work_marshaling.house import House, Instance, Node, publish_plainly, submit, view_of
from tests.unit.work_marshaling.test_scheduling import announced, gpus, item, nodes, queue_of, wanted

START = NOW.timestamp()
NEEDS_ELSEWHERE = {"node_ids": ["elsewhere"]}


@pytest.fixture
async def node(house: House, bus: Bus, queue: Instance) -> Node:
    opened = Node(house, bus, "n1")
    await opened.open(slots=1)
    return opened


async def test_an_item_that_no_known_node_could_run_is_accepted_and_flagged(queue: Instance, node: Node):
    asked = WorkItem.model_validate({"work_type": "chat", "requirements": NEEDS_ELSEWHERE})

    accepted = await queue.marshaling.submit(asked)

    assert "n1: node_ids: it is not among them" in str(accepted.unsatisfiable_now)
    assert (await view_of(queue, accepted.work_id)).unsatisfiable_now == accepted.unsatisfiable_now


async def test_an_item_that_must_only_wait_is_not_flagged(queue: Instance, node: Node):
    for _ in range(3):
        work_id = await submit(queue)

    assert (await view_of(queue, work_id)).unsatisfiable_now is None


async def test_the_flag_goes_when_a_node_comes_that_could(house: House, bus: Bus, queue: Instance, node: Node):
    work_id = await submit(queue, requirements=NEEDS_ELSEWHERE)
    other = Node(house, bus, "elsewhere")
    await other.open()

    assert (await view_of(queue, work_id)).unsatisfiable_now is None
    await other.takes()


async def test_who_asks_for_it_is_refused_instead(queue: Instance, node: Node):
    asked = {"work_type": "chat", "requirements": NEEDS_ELSEWHERE, "refuse_unsatisfiable": True}
    with pytest.raises(Unsatisfiable, match="none of 1 known nodes could run it"):
        await queue.marshaling.submit(WorkItem.model_validate(asked))

    answers = await queue.marshaling.submit_many(SubmitMany(items=(asked, asked | {"requirements": {}})))
    assert [answer.error and answer.error.code for answer in answers.answers] == ["unsatisfiable", None]


async def test_a_plain_publish_that_asks_for_it_is_refused_under_its_sequence(queue: Instance, node: Node, bus: Bus):
    await publish_plainly(bus, requirements=NEEDS_ELSEWHERE, refuse_unsatisfiable=True)
    sequence = (await bus.stream_state(WORK_IN)).last_sequence

    with pytest.raises(Unsatisfiable):
        await queue.asking.look_up(WorkLookup(sequence=sequence))


async def test_an_item_submitted_again_is_the_same_although_it_would_be_refused_by_now(
    house: House, queue: Instance, node: Node
):
    fields = {"work_id": "mine", "model_name": "m", "refuse_unsatisfiable": True}
    await submit(queue)
    await node.takes()
    await node.announce(engines=(engine("m"),), slots=1)
    await submit(queue, **fields)
    await node.announce(slots=1)

    accepted = await queue.marshaling.submit(
        WorkItem.model_validate({"work_type": "chat", "payload": {"prompt": "hi"}} | fields)
    )
    assert accepted.duplicate


async def test_a_waiting_item_is_explained_with_each_node_and_what_would_help(queue: Instance, node: Node, bus: Bus):
    await submit(queue)
    first, second = await submit(queue), await submit(queue, model_name="absent")

    told = await queue.explanations.explain(WorkLookup(work_id=first))
    other = await bus.request(EXPLAIN, WorkLookup(work_id=second))

    assert (told.position, told.queued, told.nodes[0].excluded_by[0].clause) == (1, 2, "slots")
    assert (other.position, other.nodes[0].excluded_by[0].clause) == (2, "model_name")
    assert other.smallest_change is not None
    assert other.smallest_change.changes == ("load the model absent on n1",)


async def test_an_item_that_does_not_wait_is_explained_too(queue: Instance, node: Node, house: House):
    running, done = await submit(queue), None
    given = await node.takes()
    told = await queue.explanations.explain(WorkLookup(work_id=running))
    assert told.why == "it is assigned on n1"

    await node.fail(given)
    retrying = await queue.explanations.explain(WorkLookup(work_id=running))
    assert retrying.why.startswith("it waits for its next attempt until")

    done = await submit(queue, requirements={"node_ids": ["n1"]})
    await node.complete(await node.takes(2))
    ended = await queue.explanations.explain(WorkLookup(work_id=done))
    assert ended.why == "it has ended: it is completed"


def test_the_nearest_node_says_how_much_less_would_do():
    known = nodes(workload("n1"), workload("n2"))
    known.hear_announcement(announced("n1", inventory=gpus(1, vram_total_mb=8000)), 0.0)
    known.hear_announcement(announced("n2", inventory=gpus(2, vram_total_mb=24_000)), 0.0)
    asked = wanted(item("w", 1, requirements={"min_vram_mb_per_gpu": 40_000}))

    found = explained(asked, known.all(), lambda *_: None, most=9)

    assert found.smallest_change is not None
    assert (found.smallest_change.node_id, found.smallest_change.changes) == (
        "n2",
        ("ask for `min_vram_mb_per_gpu` of at most 24000",),
    )


def test_an_item_is_behind_its_own_and_its_share_of_the_others():
    queue = queue_of(
        *(item(f"a{number}", number, submitter="a") for number in range(1, 101)),
        item("b1", 200, submitter="b"),
        item("b2", 201, submitter="b"),
        item("urgent", 300, priority=0, submitter="c"),
    )

    positions = {name: getattr(queue.stands(name, START), "position", None) for name in ("urgent", "b1", "b2", "a100")}
    assert positions == {"urgent": 1, "b1": 3, "b2": 5, "a100": 103}


demands = st.fixed_dictionaries(
    {},
    optional={
        "requires_gpu": st.booleans(),
        "min_gpu_count": st.integers(0, 3),
        "min_vram_mb_per_gpu": st.sampled_from([1000, 24_000, 25_000]),
        "min_free_vram_mb": st.sampled_from([1000, 20_000, 22_000]),
        "min_tier": st.sampled_from(list(Tier)),
        "ram_mb": st.sampled_from([100, 20_000]),
        "platform": st.sampled_from(["CUDA", "CPU_ONLY"]),
        "node_ids": st.sampled_from([["n1"], ["n2"], ["n1", "n3"]]),
        "avoid_node_ids": st.sampled_from([["n1"], ["n2", "n3"]]),
        "labels": st.sampled_from([{"room": "a"}, {"room": "b"}]),
    },
)


@settings(max_examples=200, deadline=None)
@given(
    demands, st.lists(st.integers(0, 2), min_size=3, max_size=3), st.lists(st.integers(0, 3), min_size=3, max_size=3)
)
def test_what_is_explained_is_what_is_decided(asked: dict[str, object], slots: list[int], counts: list[int]):
    known = nodes(*(workload(f"n{number}", slots=count) for number, count in enumerate(slots, start=1)))
    for number, count in enumerate(counts, start=1):
        known.hear_announcement(announced(f"n{number}", labels={"room": "ab"[number % 2]}, inventory=gpus(count)), 0.0)
    leases = Leases()
    queue = queue_of(item("w", 1, requirements=asked))
    free = leases.free(known)
    wish = wanted(item("w", 1, requirements=asked))
    told = explained(wish, known.all(), lambda wish, node: queue.now_taken(wish, node, known, free), most=9)
    open_nodes = {node.node_id for node in told.nodes if not node.excluded_by}

    chosen = [choice.node_id for choice in queue.choose(known, free, now=START, most=1)]

    assert bool(chosen) == bool(open_nodes)
    assert set(chosen) <= open_nodes
    assert (told.smallest_change is None) == bool(open_nodes)


def test_free_slots_for_other_kinds_of_work_are_no_free_slots():
    pools = [
        {"work_types": ["chat"], "slots": 1, "free_slots": 1},
        {"work_types": ["function"], "slots": 4, "free_slots": 4},
    ]
    known, leases = nodes(workload(slots=5, work_types=("chat", "function"), pools=pools)), Leases()
    leases.open("other", "t", "n1", "chat", now=0.0, seconds=30, most_seconds=60)
    queue = queue_of(item("w", 1))

    taken = queue.now_taken(wanted(item("w", 1)), known["n1"], known, leases.free(known))

    assert taken is not None
    assert taken.field == "slots"
