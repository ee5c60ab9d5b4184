"""Bytes of weights per GPU, against what engines logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.planner.matrices import Part
from libs.inference.planner.overrides import with_adapters
from libs.inference.planner.parameters import parameter_count
from libs.inference.planner.split import Manner, Parallel, stage_ranges, stage_sizes
from libs.inference.planner.weights import rotation_bytes, weight_bytes, weight_bytes_by_part
from tests.unit.inference.planner.published import facts

GIB = 2**30
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("name", "tensor", "logged", "within"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 1, 14.9888, 1e-4),
        ("meta-llama/Meta-Llama-3-8B", 1, 14.9595, 1e-4),
        ("meta-llama/Meta-Llama-3-8B", 4, 3.7418, 1e-4),
        ("Qwen/Qwen3-8B", 1, 15.2683, 1e-3),
        ("Qwen/Qwen3-30B-A3B", 4, 14.2474, 1e-3),
        ("facebook/opt-6.7b", 1, 12.4, 1e-3),
        ("zai-org/GLM-5-FP8", 8, 89.34, 1e-2),
        ("openai/gpt-oss-20b", 1, 13.72, 1e-2),
        ("openai/gpt-oss-20b", 4, 3.5798, 1e-2),
    ],
)
def test_weights_are_what_an_engine_logged(name: str, tensor: int, logged: float, within: float):
    assert weight_bytes(facts(name), Parallel(tensor=tensor)) / GIB == pytest.approx(logged, rel=within)


def test_one_gpu_holds_every_parameter_once_and_the_rotations():
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")

    assert weight_bytes(llama, Parallel()) == 2 * parameter_count(llama) + rotation_bytes(llama)


def test_heads_of_keys_are_replicated_when_there_are_fewer_than_gpus():
    moe = facts("Qwen/Qwen3-30B-A3B")  # four heads of keys
    parts = [weight_bytes_by_part(moe, Parallel(tensor=tensor))[Part.ATTENTION] for tensor in (4, 8)]

    assert parts[1] > parts[0] / 2


def test_a_tied_embedding_is_on_both_ends_of_a_pipeline():
    tied = facts("Qwen/Qwen2.5-0.5B-Instruct")
    parallel = Parallel(pipeline=2)

    assert Part.HEAD not in weight_bytes_by_part(tied, Parallel())
    assert Part.HEAD in weight_bytes_by_part(tied, parallel, 1)
    assert Part.EMBEDDING in weight_bytes_by_part(tied, parallel, 0)


def test_whole_experts_take_as_much_as_divided_ones():
    moe = facts("Qwen/Qwen3-30B-A3B")
    divided, whole = (
        weight_bytes_by_part(moe, Parallel(tensor=4, expert_parallel=kept))[Part.EXPERTS] for kept in (False, True)
    )

    assert divided == whole


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [(32, 4, (8, 8, 8, 8)), (61, 4, (15, 15, 16, 15)), (61, 8, (7, 7, 8, 8, 8, 8, 8, 7)), (43, 2, (22, 21))],
)
def test_what_remains_goes_to_the_last_stages_but_the_very_last(layers: int, stages: int, sizes: tuple[int, ...]):
    assert stage_sizes(layers, Parallel(pipeline=stages)) == sizes


@given(st.integers(1, 200), st.integers(1, 16))
def test_stages_hold_every_layer_exactly_once(layers: int, stages: int):
    held = [index for stage in stage_ranges(layers, Parallel(pipeline=stages)) for index in stage]

    assert held == list(range(layers))


@pytest.mark.parametrize("partition", [(16, 15), (16, 17), (33, -1), (32,)])
def test_a_partition_that_does_not_hold_every_layer_is_refused(partition: tuple[int, ...]):
    with pytest.raises(Malformed):
        stage_sizes(32, Parallel(pipeline=2, partition=partition))


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 8))
def test_all_gpus_together_hold_at_least_every_weight(tensor: int, pipeline: int):
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")
    parallel = Parallel(tensor=tensor, pipeline=pipeline)
    held = sum(tensor * sum(weight_bytes_by_part(llama, parallel, stage).values()) for stage in range(pipeline))

    assert held >= 2 * parameter_count(llama)


def _adapters(name: str, parallel: Parallel, count: int = 1, rank: int = 16) -> int:
    known = facts(name)
    return weight_bytes(with_adapters(known, count, rank), parallel) - weight_bytes(known, parallel)


def test_adapters_have_two_narrow_matrices_beside_every_matrix():
    hidden, wide, keys, words, layers = 4096, 14336, 1024, 128256, 32
    attention = (hidden + hidden) + 2 * (hidden + keys) + (hidden + hidden)
    feed_forward = 2 * (hidden + wide) + (wide + hidden)
    ends = 2 * (words + hidden)
    expected = 16 * 2 * (layers * (attention + feed_forward) + ends)

    assert _adapters(LLAMA, Parallel()) == expected
    assert _adapters(LLAMA, Parallel(), count=4, rank=32) == 8 * expected


def test_ranks_divide_only_one_of_the_two():
    hidden, wide, keys, words, layers = 4096, 14336, 1024, 128256, 32
    attention = (hidden + hidden // 2) + 2 * (hidden + keys // 2) + (hidden // 2 + hidden)
    feed_forward = 2 * (hidden + wide // 2) + (wide // 2 + hidden)

    assert _adapters(LLAMA, Parallel(tensor=2)) == 32 * (layers * (attention + feed_forward) + 2 * (words + hidden))


def test_every_expert_has_adapters_of_its_own():
    whole, spread = (_adapters("Qwen/Qwen3-30B-A3B", Parallel(tensor=8, expert_parallel=ep)) for ep in (False, True))

    assert whole > 5 * _adapters(LLAMA, Parallel(tensor=8))
    assert spread < whole


def test_more_experts_than_there_are_weigh_as_much_as_their_like():
    moe = facts("Qwen/Qwen3-30B-A3B")
    plain, more = (
        weight_bytes_by_part(moe, Parallel(tensor=4, expert_parallel=True, manner=Manner(redundant=extra)))[
            Part.EXPERTS
        ]
        for extra in (0, 4)
    )
    assert more * 32 == plain * 33


def test_an_encoder_is_whole_on_every_rank_where_that_is_wanted():
    model = facts("Qwen/Qwen2.5-VL-72B-Instruct")
    alone, divided, whole = (
        weight_bytes_by_part(model, parallel)[Part.VISION]
        for parallel in (Parallel(), Parallel(tensor=4), Parallel(tensor=4, manner=Manner(whole_encoder=True)))
    )
    assert divided < alone / 3
    assert whole == alone
