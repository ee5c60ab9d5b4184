"""Which GPUs a model is put on."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.inference.planner.choice import Choice, choose
from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.goal import Goal, Prefer, Strategy
from libs.inference.planner.memory import GIB, Verdict
from libs.inference.planner.options import Asked
from libs.inference.planner.rules import refusals
from libs.inference.planner.versions import Engine
from tests.unit.inference.planner.machines import all_linked, node, nodes
from tests.unit.inference.planner.published import facts

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"
SHORT = Asked(max_model_len=8192)
EIGHT = node("a", *[80] * 8, linked=True)
BARE = node("a", *[79] * 8, linked=True)
"""Where two GPUs hold the weights of the large model, and not the peak of as many sequences as an engine takes."""


def _choose(name: str, *machines: Node, asked: Asked = SHORT, **goal: object) -> Choice:
    return choose(facts(name), asked, Engine(), machines, Goal(**goal))  # type: ignore[arg-type]


def _division(choice: Choice) -> tuple[int, int] | None:
    return (choice.instances[0].parallel.tensor, choice.instances[0].parallel.pipeline) if choice.instances else None


@pytest.mark.parametrize(
    ("name", "machines", "strategy", "division"),
    [
        (LLAMA, [EIGHT], Strategy.SINGLE_GPU, (1, 1)),
        (LARGE, [EIGHT], Strategy.TENSOR_PARALLEL, (2, 1)),
        (LARGE, [node("a", *[40] * 4, linked=True), node("b", *[40] * 4)], Strategy.TENSOR_PARALLEL, (4, 1)),
        (LARGE, [node("a", *[48] * 8)], Strategy.HYBRID_TP_PP, (2, 2)),
        ("deepseek-ai/DeepSeek-V3", [EIGHT, node("b", *[80] * 8, linked=True)], Strategy.HYBRID_TP_PP, (8, 2)),
        (LARGE, [node("a", 80), node("b", 80), node("c", 80)], Strategy.PIPELINE_PARALLEL, (1, 2)),
    ],
)
def test_the_smallest_set_in_the_order_of_preference_is_chosen(
    name: str, machines: list[Node], strategy: Strategy, division: tuple[int, int]
):
    chosen = _choose(name, *machines)

    assert chosen.strategy is strategy
    assert _division(chosen) == division


def test_of_several_gpus_that_do_the_barest_is_taken():
    chosen = _choose(LLAMA, node("large", 80), node("bare", 24), node("small", 16))

    assert chosen.instances[0].seats.node_ids == ("bare",)


def test_requests_that_one_gpu_cannot_hold_get_replicas_before_wider_engines():
    chosen = _choose(LLAMA, EIGHT, concurrency=200)

    assert len(chosen.instances) == 4
    assert _division(chosen) == (1, 1)
    assert len({gpu.uuid for each in chosen.instances for gpu in each.seats.gpus}) == 4


def test_who_wants_low_latency_gets_ranks_side_by_side_instead():
    chosen = _choose(LLAMA, EIGHT, concurrency=200, prefer=Prefer.LATENCY)

    assert _division(chosen) == (8, 1)


def test_who_wants_throughput_over_the_bus_gets_a_pipeline():
    machine = node("a", *[48] * 4)

    assert _division(_choose(LARGE, machine, prefer=Prefer.THROUGHPUT)) == (1, 4)
    assert _division(_choose(LARGE, machine, prefer=Prefer.LATENCY)) == (4, 1)


def test_unlike_gpus_get_as_many_layers_as_their_memory_and_bandwidth_are_worth():
    fast = Gpu(uuid="f", node_id="m", total=24 * GIB, free=24 * GIB, name="NVIDIA GeForce RTX 4090")
    slow = Gpu(uuid="s", node_id="m", total=12 * GIB, free=12 * GIB, name="NVIDIA GeForce RTX 3060", index=1)

    chosen = _choose("Qwen/Qwen2.5-14B-Instruct", Node(node_id="m", gpus=(slow, fast)))

    first, second = chosen.instances[0].parallel.partition
    assert [gpu.uuid for gpu in chosen.instances[0].seats.gpus] == ["f", "s"]
    assert first > 2 * second
    assert first + second == 48


def test_stages_on_like_gpus_are_left_to_the_engine():
    assert _choose(LARGE, node("a", 80), node("b", 80), node("c", 80)).instances[0].parallel.partition == ()


def test_others_on_a_gpu_keep_what_they_have():
    instance = _choose(LLAMA, node("a", 80, used=50)).instances[0]

    assert instance.options.gpu_memory_utilization < 0.376
    assert instance.start.stages[0].budget <= 30 * GIB


def test_the_fullest_gpu_of_a_set_decides_how_much_is_taken_of_each():
    busy, free = node("a", 80, used=30).gpus[0], node("a", 80, 80).gpus[1]
    machine = Node(node_id="a", gpus=(busy, free), linked=all_linked((busy, free)))

    instance = _choose("Qwen/Qwen3-32B", machine, tensor=2, pipeline=1).instances[0]

    assert 0.6 < instance.options.gpu_memory_utilization < 0.625


def test_fewer_sequences_are_chosen_where_the_default_leaves_no_cache():
    instance = _choose(LARGE, BARE).instances[0]

    assert instance.lowered
    assert instance.options.max_num_seqs < 1024


def test_a_forced_division_keeps_the_defaults_of_the_engine():
    chosen = _choose(LARGE, BARE, tensor=2, pipeline=1)

    assert chosen.instances == ()
    assert chosen.declined[0].code in {Verdict.NO_CACHE.value, Verdict.TOO_LONG.value}


def test_nodes_that_cannot_give_equally_many_gpus_are_named_with_what_they_have():
    chosen = _choose("Qwen/Qwen3-32B", node("a", 24, 24), node("b", 24), tensor=1, pipeline=3)

    assert [(each.code, each.message) for each in chosen.declined] == [
        ("unequal_nodes", "World size (3) needs as many GPUs of each node that takes part, and the nodes have 2, 1.")
    ]


@pytest.mark.parametrize(("tensor", "code"), [(3, "attention_heads"), (16, "too_few_gpus")])
def test_a_forced_division_that_cannot_be_is_refused_and_nothing_else_is_tried(tensor: int, code: str):
    chosen = _choose(LLAMA, EIGHT, tensor=tensor)

    assert chosen.instances == ()
    assert {declined.parallel.tensor for declined in chosen.declined} == {tensor}
    assert chosen.declined[0].code == code


def test_where_nothing_fits_every_division_says_why():
    chosen = _choose("deepseek-ai/DeepSeek-V3", node("a", 24, 24))

    assert chosen.instances == ()
    assert {(each.parallel.tensor, each.parallel.pipeline) for each in chosen.declined} == {(1, 1), (2, 1), (1, 2)}
    assert all(declined.message for declined in chosen.declined)


def test_a_gpu_too_old_for_the_engine_is_not_taken():
    chosen = _choose(LLAMA, node("old", 24, capability=(6, 1)), node("new", 24, capability=(8, 6)))

    assert chosen.instances[0].seats.node_ids == ("new",)


def test_ranks_of_a_stage_span_nodes_only_where_they_are_forced_to():
    machines = [node("a", 80, 80), node("b", 80, 80)]

    assert len(_choose(LARGE, *machines, tensor=4).instances[0].seats.node_ids) == 2
    assert all(
        len({gpu.node_id for gpu in stage}) == 1 for stage in _choose(LARGE, *machines).instances[0].seats.stages
    )


def test_as_many_tokens_per_second_as_are_wanted_take_more_gpus():
    slow, fast = (_choose(LLAMA, EIGHT, tokens_per_second=rate).instances[0] for rate in (15, 60))

    assert slow.parallel.gpus < fast.parallel.gpus
    assert fast.tokens_per_second >= 60


PREFERENCES = st.sampled_from((None, *Prefer))


@settings(max_examples=60, deadline=None)
@given(nodes(), st.sampled_from((LLAMA, "openai/gpt-oss-20b")), st.integers(1, 40), PREFERENCES)
def test_no_plan_takes_more_than_is_free_of_any_gpu(
    machines: list[Node], name: str, requests: int, prefer: Prefer | None
):
    chosen = choose(facts(name), SHORT, Engine(), machines, Goal(concurrency=requests, prefer=prefer))

    taken = [gpu for each in chosen.instances for gpu in each.seats.gpus]
    assert len({gpu.uuid for gpu in taken}) == len(taken)
    for instance in chosen.instances:
        assert refusals(facts(name), instance.parallel) == []
        assert instance.start.verdict is Verdict.FITS
        for gpu in instance.seats.gpus:
            assert gpu.total * instance.options.gpu_memory_utilization <= gpu.free + 1
        assert sum(instance.parallel.partition) in (0, len(facts(name).layers))


@settings(max_examples=60, deadline=None)
@given(nodes(), st.integers(1, 24), st.integers(1, 48), PREFERENCES)
def test_more_memory_never_turns_a_fit_into_a_refusal(
    machines: list[Node], requests: int, more: int, prefer: Prefer | None
):
    goal = Goal(concurrency=requests, prefer=prefer)
    larger = [
        replace(each, gpus=tuple(replace(g, total=g.total + more * GIB, free=g.free + more * GIB) for g in each.gpus))
        for each in machines
    ]
    before = choose(facts(LLAMA), SHORT, Engine(), machines, goal).instances
    after = choose(facts(LLAMA), SHORT, Engine(), larger, goal).instances

    assert not before or after


@settings(max_examples=60, deadline=None)
@given(nodes(), st.integers(1, 6), st.integers(1, 4))
def test_a_forced_division_is_obeyed_or_refused(machines: list[Node], tensor: int, pipeline: int):
    chosen = choose(facts(LLAMA), SHORT, Engine(), machines, Goal(tensor=tensor, pipeline=pipeline))

    assert _division(chosen) in {None, (tensor, pipeline)}
    assert chosen.instances or chosen.declined


@settings(max_examples=30, deadline=None)
@given(
    nodes(),
    st.floats(0.2, 0.99),
    st.integers(1, 512),
    st.integers(512, 8192),
    st.sampled_from(("auto", "fp8")),
)
def test_forced_options_are_obeyed(machines: list[Node], utilization: float, count: int, tokens: int, cache: str):
    asked = Asked(
        max_model_len=4096,
        gpu_memory_utilization=utilization,
        max_num_seqs=count,
        max_num_batched_tokens=tokens,
        kv_cache_dtype=cache,
        enforce_eager=True,
    )

    for instance in choose(facts(LLAMA), asked, Engine(), machines).instances:
        options = instance.options
        assert options.gpu_memory_utilization == utilization
        assert (options.max_num_seqs, options.max_num_batched_tokens) == (count, tokens)
        assert (options.kv_cache_dtype, options.enforce_eager, options.max_model_len) == (cache, True, 4096)


def _cut(*gibs: float, name: str = "NVIDIA A100-SXM4-80GB MIG 3g.40gb") -> Node:
    """A node with a GPU that is cut in parts."""
    parts = (
        Gpu(uuid=f"MIG-{place}", node_id="m", total=int(gib * GIB), free=int(gib * GIB), name=name)
        for place, gib in enumerate(gibs)
    )
    return Node(node_id="m", gpus=tuple(parts))


def test_a_part_of_a_gpu_serves_what_fits_it_and_is_named_by_its_uuid():
    chosen = _choose(LLAMA, _cut(40, 20))

    assert chosen.strategy is Strategy.SINGLE_GPU
    assert [gpu.uuid for gpu in chosen.instances[0].seats.gpus] == ["MIG-1"]


def test_parts_of_a_gpu_serve_side_by_side_as_replicas():
    chosen = _choose(LLAMA, _cut(20, 20), replicas=2)

    assert {gpu.uuid for each in chosen.instances for gpu in each.seats.gpus} == {"MIG-0", "MIG-1"}


@pytest.mark.parametrize("goal", [{"tensor": 2}, {"pipeline": 2}])
def test_parts_of_a_gpu_do_not_work_together(goal: dict[str, object]):
    chosen = _choose(LLAMA, _cut(20, 20), **goal)

    assert chosen.instances == ()
    assert "mig_devices" in [declined.code for declined in chosen.declined]


def test_a_model_that_no_part_holds_goes_to_whole_gpus_beside_them():
    chosen = _choose(LARGE, _cut(40, 40), node("w", 80, 80, linked=True))

    assert chosen.instances[0].seats.node_ids == ("w",)
    assert _choose(LARGE, _cut(40, 40, 40, 40)).instances == ()


@given(nodes())
@settings(max_examples=30, deadline=None)
def test_no_engine_ever_spans_a_part_of_a_gpu(machines: list[Node]):
    cut = [
        replace(each, gpus=tuple(replace(gpu, uuid=f"MIG-{gpu.uuid}") for gpu in each.gpus)) for each in machines[:1]
    ]
    for instance in _choose(LLAMA, *cut, *machines[1:], concurrency=8).instances:
        gpus = instance.seats.gpus
        assert len(gpus) == 1 or not any(gpu.is_part for gpu in gpus)


def test_tokens_per_second_that_one_gpu_cannot_give_come_from_replicas_before_wider_engines():
    machine = node("a", *[24] * 4, gpu="NVIDIA L4")
    chosen = _choose(LLAMA, machine, concurrency=8, tokens_per_second=80)

    assert [each.parallel.gpus for each in chosen.instances] == [1, 1]
    assert sum(each.tokens_per_second for each in chosen.instances) >= 80
    assert "80 tokens per second" in chosen.notes[0]


def test_one_request_is_never_made_faster_by_replicas():
    machine = node("a", *[24] * 4, gpu="NVIDIA L4", linked=True)
    chosen = _choose(LLAMA, machine, concurrency=2, tokens_per_second=44.4)

    assert [each.parallel.tensor for each in chosen.instances] == [4]


def test_tokens_per_second_that_nothing_gives_are_refused_with_what_there_is():
    chosen = _choose(LLAMA, node("a", 24, 24, gpu="NVIDIA L4"), tokens_per_second=1e6)

    assert chosen.instances == ()
    assert "tokens_per_second" in [declined.code for declined in chosen.declined]
