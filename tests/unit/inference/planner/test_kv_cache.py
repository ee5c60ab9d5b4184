"""The cache: bytes per token, blocks, groups, and the tokens that engines logged."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.kv_cache import Demand, Group, KvLayout, group_size, kv_layout, token_bytes
from libs.inference.planner.split import Manner, Parallel
from tests.unit.inference.planner.published import facts
from tests.unit.inference.planner.test_facts import GEMMA_3N, KIMI_LINEAR

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "tensor", "cache_type", "expected"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 1, "auto", 131072),
        ("meta-llama/Llama-2-7b-hf", 1, "auto", 524288),
        ("Qwen/Qwen2-7B-Instruct", 1, "auto", 57344),
        ("Qwen/Qwen2-7B-Instruct", 2, "auto", 28672),
        ("Qwen/Qwen2.5-0.5B-Instruct", 1, "auto", 12288),
        ("Qwen/Qwen3-8B", 4, "auto", 36864),
        ("Qwen/Qwen3-14B", 1, "auto", 163840),
        ("Qwen/Qwen3-14B", 1, "fp8", 81920),
        ("moonshotai/Kimi-K2.5", 8, "fp8", 61 * 576),
        ("zai-org/GLM-5-FP8", 8, "auto", 78 * (576 * 2 + 132)),
    ],
)
def test_a_token_takes_the_bytes_that_were_measured(name: str, tensor: int, cache_type: str, expected: int):
    found = facts(name)

    assert sum(token_bytes(found, mixer, tensor, cache_type) for mixer in found.mixers) == expected


@pytest.mark.parametrize(
    ("name", "tensor", "gib", "length", "logged"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 1, 19.28, 131072, 157936),
        ("Qwen/Qwen3-8B", 1, 18.69, 40960, 136080),
        ("Qwen/Qwen2.5-7B-Instruct", 1, 5.46, 4096, 102288),
        ("zai-org/GLM-5-FP8", 8, 32.11, 202752, 344192),
    ],
)
def test_the_same_bytes_hold_the_tokens_that_an_engine_logged(
    name: str, tensor: int, gib: float, length: int, logged: int
):
    layout = kv_layout(facts(name), Parallel(tensor=tensor))
    blocks = layout.blocks_in(int(gib * GIB))

    assert layout.tokens(blocks, Demand(max_model_len=length)) == pytest.approx(logged, rel=2e-3)


def test_windows_and_whole_layers_share_blocks_as_an_engine_logged_it():
    layout = kv_layout(facts("openai/gpt-oss-120b"), Parallel(tensor=4))
    demand = Demand(max_model_len=16384, tokens_in_flight=2048)

    assert layout.block_bytes == 16 * 9216
    assert [group.blocks(demand) for group in layout.groups] == [1024, 137]
    assert layout.concurrency(330_018, demand) == pytest.approx(284.25, abs=0.005)


def test_without_groups_every_layer_keeps_all_tokens():
    scout = facts("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    demand = Demand(max_model_len=1_000_000, tokens_in_flight=2 * 8192)
    grouped, flat = (
        kv_layout(scout, Parallel(tensor=8), hybrid=hybrid).request_bytes(demand) / GIB for hybrid in (True, False)
    )

    assert flat == pytest.approx(22.9, abs=0.1)
    assert grouped < flat / 3


def test_latents_are_not_divided_among_gpus():
    found = facts("deepseek-ai/DeepSeek-V3")

    assert token_bytes(found, found.mixers[0], 8, "auto") == token_bytes(found, found.mixers[0], 1, "auto") == 1152


def test_attention_blocks_grow_until_one_holds_a_state():
    layout = kv_layout(facts("Qwen/Qwen3.6-27B"), Parallel())
    attention, state = layout.groups[0], layout.groups[-1]

    assert state.state
    assert not attention.state
    assert attention.page == state.page
    assert attention.tokens == 784


def test_a_state_takes_one_block_whatever_the_length():
    group = Group(layers=1, page=1024, tokens=16, state=True)

    assert group.blocks(Demand(max_model_len=1)) == group.blocks(Demand(max_model_len=10**6)) == 1


def test_an_unknown_type_of_cache_is_refused():
    with pytest.raises(Malformed, match="kv_cache_dtype must be one of"):
        kv_layout(facts("Qwen/Qwen3-8B"), Parallel(), cache_type="fp3")


@pytest.mark.parametrize(("counts", "size"), [([18, 18], 18), ([22, 4], 4), ([13, 14], 14), ([10, 30], 10)])
def test_groups_are_as_large_as_the_smallest_count_unless_the_largest_is_close(counts: list[int], size: int):
    assert group_size(counts) == size


@given(st.integers(1, 10**6), st.integers(0, 10**5), st.integers(1, 10**5))
def test_a_window_never_takes_more_blocks_than_whole_attention_and_one(length: int, flying: int, window: int):
    demand = Demand(max_model_len=length, tokens_in_flight=flying)
    limited = Group(layers=1, page=1, tokens=16, window=window)

    assert limited.blocks(demand) <= Group(layers=1, page=1, tokens=16).blocks(demand) + 1


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_more_bytes_never_hold_fewer_tokens(size: int, more: int):
    layout = KvLayout(block_bytes=4096, groups=(Group(layers=2, page=2048, tokens=16),))
    demand = Demand(max_model_len=4096)

    assert layout.tokens(layout.blocks_in(size), demand) <= layout.tokens(layout.blocks_in(size + more), demand)


@given(length=st.integers(1, 200_000), context=st.sampled_from([1, 2, 4, 8]))
def test_ranks_that_share_tokens_need_that_many_fewer_blocks(length: int, context: int):
    layout = kv_layout(facts("deepseek-ai/DeepSeek-V3"), Parallel(tensor=8, manner=Manner(context=context)))
    plain = kv_layout(facts("deepseek-ai/DeepSeek-V3"), Parallel(tensor=8))

    assert layout.block_bytes == plain.block_bytes
    assert layout.request_blocks(Demand(max_model_len=length)) == -(-length // (16 * context))


def test_windows_and_states_are_not_shared_by_ranks():
    groups = kv_layout(facts("openai/gpt-oss-20b"), Parallel(tensor=16, manner=Manner(context=2))).groups

    assert {(group.window is None, group.sharers) for group in groups} == {(True, 2), (False, 1)}


def test_layers_that_share_a_cache_take_none():
    own, shared = model_facts(GEMMA_3N), model_facts(GEMMA_3N)
    own = replace(own, layers=own.layers[:20])

    assert kv_layout(shared, Parallel()) == kv_layout(own, Parallel())


def test_a_model_of_gates_and_latents_keeps_states_in_pages_of_latents():
    layout = kv_layout(model_facts(KIMI_LINEAR), Parallel(tensor=2))
    state = 3 * (3 * 32 * 128 // 2) * 2 + 32 * 128 * 128 // 2 * 4

    pages = {group.page for group in layout.groups}
    assert len(pages) == 1
    assert pages.pop() >= state
    assert sum(not group.state for group in layout.groups) == 1
