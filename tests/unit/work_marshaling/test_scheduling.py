"""Who gets which item, and why not somebody else."""

import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from libs.common.contracts.node_registry import (
    Cpu,
    EngineState,
    Gpu,
    Inventory,
    Memory,
    NodeAnnounced,
    NodeHeartbeat,
    NodeState,
    NodeStatus,
    Platform,
    Tier,
)
from libs.hardware.matching import Lack
from services.work_marshaling import matching
from services.work_marshaling.leases import Leases
from services.work_marshaling.matching import Wanted, why_not
from services.work_marshaling.model import Attempt, Outcome, WorkItem
from services.work_marshaling.nodes import Nodes
from services.work_marshaling.scheduler import Queue
from services.work_marshaling.slots import Promise, SlotPool, Slots
from tests.unit.work_marshaling.builders import NOW, engine, memory, submitted, workload

AGEING = 300.0


def wanted(each: WorkItem) -> Wanted:
    return matching.wanted(each, 3)


def item(work_id: str, sequence: int, **fields: object) -> WorkItem:
    from services.work_marshaling.machine import decide
    from tests.unit.work_marshaling.builders import POLICY

    kept = memory()
    for fact in decide(None, submitted(work_id, sequence, **fields), POLICY, NOW, 0.5):
        kept.take(fact)
    return kept.items[work_id]


def nodes(*told: object) -> Nodes:
    known = Nodes(silence_seconds=30)
    for each in told or (workload(),):
        known.hear_workload(each, 0.0)  # type: ignore[arg-type]
    return known


def chosen(
    queue: Queue, known: Nodes, free: dict[str, int], most: int = 1000, now: float = NOW.timestamp()
) -> list[tuple[str, str]]:
    slots = {node_id: Slots([SlotPool(frozenset({"chat"}), count)]) for node_id, count in free.items()}
    return [(choice.work_id, choice.node_id) for choice in queue.choose(known, slots, now=now, most=most)]


def chosen_by_pace(queue: Queue, known: Nodes, free: dict[str, int], slow: dict[str, int], now: datetime) -> list[str]:
    slots = {node_id: Slots([SlotPool(frozenset({"chat"}), count)]) for node_id, count in free.items()}
    choices = queue.choose(known, slots, now=now.timestamp(), most=9, slowness=lambda _: slow)
    return [choice.node_id for choice in choices]


def queue_of(*items: WorkItem) -> Queue:
    queue = Queue(ageing_seconds=AGEING, poison_nodes=3)
    for each in items:
        queue.add(each)
    return queue


def announced(node_id: str = "n1", **fields: object) -> NodeAnnounced:
    inventory = Inventory(hostname="h", platform=Platform.CPU_ONLY, operating_system="Linux", cpu=Cpu())
    told: dict[str, object] = {"node_id": node_id, "boot_id": "b1", "at": NOW, "tier": Tier.CPU_ONLY}
    return NodeAnnounced.model_validate(told | {"inventory": inventory} | fields)


def test_the_highest_priority_goes_first_then_the_oldest():
    queue = queue_of(item("c", 3, priority=5), item("a", 2, priority=0), item("b", 1, priority=5))

    assert [work for work, _ in chosen(queue, nodes(), {"n1": 3})] == ["a", "b", "c"]


def test_priority_holds_across_different_demands():
    known = nodes(workload(engines=(engine("m"),)))
    queue = queue_of(item("late", 1, priority=9), item("first", 2, priority=0, model_name="m"))

    assert chosen(queue, known, {"n1": 1}) == [("first", "n1")]


def test_no_node_gets_more_than_its_free_slots():
    queue = queue_of(*(item(f"w{number}", number) for number in range(1, 10)))

    assert len(chosen(queue, nodes(), {"n1": 4})) == 4
    assert len(queue) == 5


def test_the_node_with_most_free_slots_is_taken():
    known = nodes(workload("n1"), workload("n2"))
    queue = queue_of(*(item(f"w{number}", number) for number in range(1, 5)))

    taken = [node for _, node in chosen(queue, known, {"n1": 1, "n2": 3})]

    assert sorted(taken) == ["n1", "n2", "n2", "n2"]
    assert taken[0] == "n2"


def test_a_preferred_node_comes_before_a_freer_one():
    known = nodes(workload("n1"), workload("n2"))
    queue = queue_of(item("w", 1, requirements={"prefer_node_ids": ["n1"]}))

    assert chosen(queue, known, {"n1": 1, "n2": 3}) == [("w", "n1")]


def test_an_item_that_no_node_can_take_does_not_hold_up_the_others():
    queue = queue_of(item("stuck", 1, priority=0, model_name="absent"), item("w", 2, priority=9))

    assert chosen(queue, nodes(), {"n1": 1}) == [("w", "n1")]


def test_a_removed_item_is_not_chosen():
    queue = queue_of(item("w", 1))
    queue.remove("w")

    assert chosen(queue, nodes(), {"n1": 1}) == []


def test_an_external_item_goes_outside_whatever_nodes_there_are():
    queue = queue_of(item("w", 1, requirements={"node_ids": ["external"]}))

    assert chosen(queue, Nodes(silence_seconds=30), {}) == [("w", "external")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([None, "a", "b"])), max_size=40),
    st.dictionaries(st.sampled_from(["n1", "n2", "n3"]), st.integers(0, 5)),
    st.integers(1, 50),
)
def test_whatever_waits_the_choice_is_fair_and_within_bounds(
    asked: list[tuple[int, str | None]], free: dict[str, int], most: int
):
    known = nodes(*(workload(name, slots=5, engines=(engine("a"),)) for name in ("n1", "n2", "n3")))
    items = {
        f"w{number}": item(f"w{number}", number, priority=priority, model_name=model)
        for number, (priority, model) in enumerate(asked, start=1)
    }
    queue = queue_of(*items.values())
    runnable = sorted(
        (each for each in items.values() if each.spec.model_name != "b"),
        key=lambda each: (each.spec.priority, each.sequence),
    )

    taken = chosen(queue, known, free, most)

    expected = min(len(runnable), sum(free.values()), most)
    assert [work for work, _ in taken] == [each.work_id for each in runnable[:expected]]
    assert all([node for _, node in taken].count(name) <= slots for name, slots in free.items())
    assert len(queue) == len(items) - len(taken)


def test_a_turn_costs_no_more_with_many_items_waiting():
    def cost(waiting: int) -> int:
        template = item("w", 1)
        queue = Queue(ageing_seconds=AGEING, poison_nodes=3)
        for number in range(waiting):
            queue.add(template._replace(work_id=f"w{number}", sequence=number))
        known = nodes()
        return calls(lambda: [chosen(queue, known, {"n1": 1}) for _ in range(200)])

    assert cost(20_000) < 1.1 * cost(1_000)


def test_an_item_on_an_idle_queue_costs_no_more_with_many_nodes():
    def cost(node_count: int) -> int:
        queue, known = queue_of(item("first", 1)), nodes(*(workload(f"n{number}") for number in range(node_count)))
        chosen(queue, known, {"n1": 1})
        queue.add(item("next", 2))
        return calls(lambda: chosen(queue, known, {"n1": 1}))

    assert cost(200) == cost(2)


def test_what_happens_to_a_node_while_nothing_waits_is_known_to_the_next_item():
    queue, known = queue_of(item("first", 1)), nodes()
    assert chosen(queue, known, {"n1": 1}) == [("first", "n1")]

    known.hear_workload(workload(draining=True), 0.0)
    queue.add(item("next", 2))
    assert chosen(queue, known, {"n1": 1}) == []


def calls(work: Callable[[], object]) -> int:
    """How many functions it calls."""
    counted = Counter[str]()
    sys.setprofile(lambda _, event, __: counted.update([event]))
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"]


@pytest.mark.parametrize(
    ("fields", "told", "reason"),
    [
        ({}, {"work_types": ("embedding",)}, "does not run work of type chat"),
        ({"model_name": "m"}, {}, "does not serve the model m"),
        ({"model_name": "m"}, {"engines": (engine("m", EngineState.STARTING),)}, "does not serve the model m"),
        ({"requirements": {"node_ids": ["other"]}}, {}, "node_ids: it is not among them"),
        ({"requirements": {"avoid_node_ids": ["n1"]}}, {}, "the item avoids it"),
        ({"requirements": {"requires_gpu": True}}, {}, "nothing is known yet"),
        ({}, {"draining": True}, "draining"),
        ({}, {"slots": 0}, "no slots"),
    ],
)
def test_a_node_is_excluded_with_the_reason(fields: dict[str, object], told: dict[str, object], reason: str):
    known = nodes(workload(**told))

    assert reason in str(why_not(wanted(item("w", 1, **fields)), known["n1"]))


def test_a_node_that_fits_has_no_reason_against_it():
    assert why_not(wanted(item("w", 1)), nodes()["n1"]) is None


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ({"requires_gpu": True}, "requires_gpu: it has no GPU that works"),
        ({"min_vram_mb_per_gpu": 1000}, "no GPU that works"),
        ({"ram_mb": 9000}, "ram_mb: it has 8192, not 9000"),
        ({"labels": {"room": "b"}}, "labels: room is a, not b"),
        ({"labels": {"room": "a"}, "ram_mb": 8000}, None),
    ],
)
def test_what_a_node_lacks_is_named(requirements: dict[str, object], reason: str | None):
    known = nodes()
    inventory = Inventory(
        hostname="h",
        platform=Platform.CPU_ONLY,
        operating_system="Linux",
        memory=Memory(total_mb=16384, available_mb=8200),
    )
    known.hear_announcement(announced(labels={"room": "a"}, inventory=inventory), 0.0)

    found = why_not(wanted(item("w", 1, requirements=requirements)), known["n1"])

    assert found == reason if reason is None else reason in str(found)


def test_a_gpu_that_is_broken_is_no_gpu():
    known = nodes()
    broken = Gpu(uuid="g", index=0, name="x", vendor="NVIDIA", vram_total_mb=24000, healthy=False)
    inventory = Inventory(hostname="h", platform=Platform.CUDA, operating_system="Linux", gpus=(broken,))
    known.hear_announcement(announced(inventory=inventory), 0.0)

    asked = wanted(item("w", 1, requirements={"requires_gpu": True}))
    assert why_not(asked, known["n1"]) == Lack("requires_gpu", "it has no GPU that works")


def test_a_silent_node_gets_nothing_until_it_speaks_again():
    known = nodes()
    known.pass_time(31.0)
    asked = wanted(item("w", 1))
    assert "silent" in str(why_not(asked, known["n1"]))

    known.hear_workload(workload(), 32.0)
    assert why_not(asked, known["n1"]) is None


@pytest.mark.parametrize("state", [NodeState.OFFLINE, NodeState.SUSPECT])
def test_a_node_that_the_registry_doubts_gets_nothing(state: NodeState):
    known = nodes()
    known.hear_status(NodeStatus(node_id="n1", state=state, previous=NodeState.ONLINE, reason="silent", at=NOW))

    assert state.value in str(why_not(wanted(item("w", 1)), known["n1"]))


def test_a_node_that_refused_is_left_alone_for_a_moment():
    known = nodes()
    known.avoid("n1", "full", until=10.0)
    asked = wanted(item("w", 1))
    assert "full" in str(why_not(asked, known["n1"]))

    known.pass_time(10.0)
    assert why_not(asked, known["n1"]) is None


def test_free_memory_that_wobbles_is_no_news():
    known = nodes()
    inventory = Inventory(
        hostname="h", platform=Platform.CPU_ONLY, operating_system="Linux", memory=Memory(available_mb=1000)
    )
    known.hear_announcement(announced(inventory=inventory), 0.0)
    before = known.version
    known.hear_announcement(
        announced(inventory=inventory.model_copy(update={"memory": Memory(available_mb=1010)})), 0.0
    )

    assert known.version == before


def test_an_item_waits_for_a_node_where_it_did_not_fail_as_long_as_there_is_one():
    tried = Attempt(number=1, token="t", node_id="n1", assigned_at=NOW, outcome=Outcome.EXPIRED)
    again = item("w", 1)._replace(attempts=(tried,))
    known = nodes(workload("n1", slots=9), workload("n2", slots=1))
    assert chosen(queue_of(again), known, {"n1": 9, "n2": 1}) == [("w", "n2")]
    assert chosen(queue_of(again), known, {"n1": 9, "n2": 0}) == []

    known.avoid("n2", "gone", until=99.0)
    assert chosen(queue_of(again), known, {"n1": 9, "n2": 1}) == [("w", "n1")]


def test_the_queue_tells_how_many_wait_by_priority():
    queue = queue_of(item("a", 1, priority=0), item("b", 2, priority=5), item("c", 3, priority=5))
    queue.remove("b")

    assert {priority: count for priority, count in queue.by_priority.items() if count} == {0: 1, 5: 1}


def test_slots_that_kinds_of_work_share_are_taken_by_either():
    slots = Slots([SlotPool(frozenset({"chat", "inference"}), 3), SlotPool(frozenset({"function"}), 2)], {"chat": 2})

    assert (slots.free("chat"), slots.free("inference"), slots.free("function")) == (1, 1, 2)
    slots.take("inference")
    assert (slots.free("chat"), slots.free("function"), slots.total()) == (0, 2, 2)


def test_leases_beyond_the_slots_of_a_node_leave_none():
    slots = Slots([SlotPool(frozenset({"chat"}), 2)], {"chat": 5, "gone": 3})

    assert slots.free("chat") == 0


def test_a_full_pool_of_one_kind_does_not_hide_the_free_one_of_another():
    pools = [
        {"work_types": ["chat"], "slots": 1, "free_slots": 1},
        {"work_types": ["function"], "slots": 4, "free_slots": 4},
    ]
    known = nodes(workload(slots=5, work_types=("chat", "function"), pools=pools))
    queue = queue_of(*(item(f"w{number}", number) for number in range(1, 4)), item("f", 9, work_type="function"))

    taken = queue.choose(known, Leases().free(known), now=NOW.timestamp(), most=100)

    assert [choice.work_id for choice in taken] == ["w1", "f"]


def gpus(count: int, **fields: object) -> Inventory:
    told: dict[str, object] = {"name": "NVIDIA L4", "vendor": "NVIDIA", "compute_capability": "8.9"}
    size: dict[str, object] = {"vram_total_mb": 24_000, "vram_free_mb": 20_000}
    made = tuple(
        Gpu.model_validate(told | size | {"uuid": f"g{number}", "index": number} | fields) for number in range(count)
    )
    return Inventory(
        hostname="h",
        platform=Platform.CUDA,
        operating_system="Linux",
        gpus=made,
        cpu=Cpu(threads=8),
        memory=Memory(total_mb=32_000, available_mb=16_384),
    )


@pytest.mark.parametrize(
    ("requirements", "field", "passing"),
    [
        ({"min_gpu_count": 2}, None, None),
        ({"min_gpu_count": 3}, "min_gpu_count", False),
        ({"gpu_model": "l4", "min_vram_mb_per_gpu": 24_000, "compute_capability": "8.0"}, None, None),
        ({"gpu_model": "H100"}, "gpu_model", False),
        ({"min_vram_mb_per_gpu": 30_000}, "min_vram_mb_per_gpu", False),
        ({"min_free_vram_mb": 22_000}, "min_free_vram_mb", True),
        ({"min_free_vram_mb": 30_000}, "min_free_vram_mb", False),
        ({"min_total_vram_mb": 48_001}, "min_total_vram_mb", False),
        ({"compute_capability": "9.0"}, "compute_capability", False),
        ({"platform": "rocm"}, "platform", False),
        ({"tier": "gpu_peer", "min_tier": "gpu_infra", "platform": "cuda"}, None, None),
        ({"min_tier": "AI_FACTORY"}, "min_tier", False),
        ({"min_ram_mb": 40_000}, "min_ram_mb", False),
        ({"min_cpu_threads": 16}, "min_cpu_threads", False),
        ({"ram_mb": 20_000}, "ram_mb", True),
    ],
)
def test_requirements_are_those_of_the_node_query(
    requirements: dict[str, object], field: str | None, passing: bool | None
):
    known = nodes()
    known.hear_announcement(announced(tier=Tier.GPU_PEER, inventory=gpus(2)), 0.0)

    lack = why_not(wanted(item("w", 1, requirements=requirements)), known["n1"])

    assert (lack and lack.field, lack and lack.passing) == (field, passing)


def test_a_tier_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="'GOLD' is none of AI_FACTORY, GPU_PEER, GPU_INFRA, CPU_ONLY"):
        submitted("w", 1, requirements={"min_tier": "GOLD"})


def test_a_node_that_the_registry_drains_gets_nothing():
    known = nodes()
    status = NodeStatus(node_id="n1", state=NodeState.ONLINE, previous=None, reason="", at=NOW, draining=True)
    known.hear_status(status)
    assert "draining" in str(why_not(wanted(item("w", 1)), known["n1"]))

    known.hear_drains(frozenset())
    assert why_not(wanted(item("w", 1)), known["n1"]) is None


def test_items_that_need_memory_are_not_given_more_of_it_than_a_node_has_free():
    known = nodes(workload(slots=4))
    known.hear_announcement(announced(inventory=gpus(0)), 0.0)
    leases = Leases()
    queue = queue_of(*(item(f"w{number}", number, requirements={"ram_mb": 6000}) for number in range(1, 5)))

    taken = queue.choose(known, leases.free(known), now=NOW.timestamp(), most=9)
    for choice in taken:
        leases.open(
            choice.work_id, "t", "n1", "chat", now=1.0, seconds=30, most_seconds=60, memory=Promise(ram_mb=6000)
        )
    again = queue.choose(known, leases.free(known), now=NOW.timestamp(), most=9)

    assert ([choice.work_id for choice in taken], again) == (["w1", "w2"], [])
    known.hear_heartbeat(NodeHeartbeat(node_id="n1", boot_id="b1", sequence=1, at=NOW, memory_available_mb=6400), 20.0)
    assert [choice.work_id for choice in queue.choose(known, leases.free(known), now=NOW.timestamp(), most=9)] == ["w3"]


promises = st.builds(Promise, ram_mb=st.integers(0, 9), vram_mb=st.integers(1, 9), gpu_count=st.integers(0, 3))


@given(st.integers(0, 30), st.lists(st.integers(0, 12), max_size=4), st.lists(promises, max_size=20))
def test_what_is_promised_of_memory_was_free(ram_mb: int, vram_mb: list[int], wanted: list[Promise]):
    slots = Slots([SlotPool(frozenset({"chat"}), 99)], ram_mb=ram_mb, vram_mb=vram_mb)
    given_away = []
    for each in wanted:
        if slots.free("chat", each):
            slots.take("chat", memory=each)
            given_away.append(each)

    assert sum(each.ram_mb for each in given_away) <= ram_mb
    assert sum(each.vram_mb * each.gpu_count for each in given_away) <= sum(vram_mb)
    assert all(sum(free >= each.vram_mb for free in vram_mb) >= each.gpu_count for each in given_away)
    again = Slots([SlotPool(frozenset({"chat"}), 99)], ram_mb=ram_mb, vram_mb=vram_mb, promised=given_away)
    assert all(again.free("chat", each) == slots.free("chat", each) for each in wanted if each not in given_away) or (
        not given_away
    )


def test_items_that_need_vram_are_not_given_more_of_it_than_each_gpu_has_free():
    known = nodes(workload(slots=9))
    known.hear_announcement(announced(inventory=gpus(2)), 0.0)
    queue = queue_of(*(item(f"w{number}", number, requirements={"vram_mb": 15_000}) for number in range(1, 5)))

    taken = queue.choose(known, Leases().free(known), now=NOW.timestamp(), most=9)

    assert [choice.work_id for choice in taken] == ["w1", "w2"]


def test_an_item_that_needs_vram_says_so_where_there_is_too_little():
    known = nodes(workload(slots=9))
    known.hear_announcement(announced(inventory=gpus(2)), 0.0)

    assert why_not(wanted(item("w", 1, requirements={"vram_mb": 15_000, "min_gpu_count": 2})), known["n1"]) is None
    lack = why_not(wanted(item("w", 1, requirements={"vram_mb": 30_000})), known["n1"])
    assert lack is not None
    assert (lack.field, "not 30000" in lack.reason) == ("vram_mb", True)


def test_of_two_nodes_the_one_that_failed_less_of_late_is_taken():
    known = nodes(workload("n1", slots=9), workload("n2", slots=1))
    free = {"n1": Slots([SlotPool(frozenset({"chat"}), 9)]), "n2": Slots([SlotPool(frozenset({"chat"}), 1)])}
    queue = queue_of(item("w", 1))

    (choice,) = queue.choose(known, free, now=NOW.timestamp(), most=1, trouble={"n1": 3, "n2": 0}.__getitem__)

    assert choice.node_id == "n2"
