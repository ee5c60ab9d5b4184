"""Drafts: what guesses tokens ahead takes memory of its own, and vLLM refuses some of it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.planner.activations import activation_bytes, sampler_bytes
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.drafts import KNOWN_TO_DRAFT, draft_matrices
from libs.inference.planner.facts import Adapters, DraftMethod, ModelFacts
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.headers import StoredTensor
from libs.inference.planner.kv_cache import kv_layout
from libs.inference.planner.memory import GIB, graph_bytes
from libs.inference.planner.options import Asked, options_of
from libs.inference.planner.rules import NO_PIPELINE, refusals
from libs.inference.planner.sentences import option_refusals
from libs.inference.planner.speculation import Wanted, method_of, needs_documents, with_draft
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import Engine
from libs.inference.planner.weights import draft_bytes, rotation_bytes, weight_bytes
from tests.unit.inference.planner.published import config, facts

LLAMA, SMALL = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
DEEPSEEK, HYBRID = "deepseek-ai/DeepSeek-V3", "Qwen/Qwen3.6-27B"

EAGLE3 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 2048,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
    "torch_dtype": "float16",
}
"""The configuration of a head that was published for Llama 3.1 8B, as far as it sizes it."""


def _mtp(name: str, tokens: int | None = None) -> ModelFacts:
    return with_draft(facts(name), Wanted(method="mtp", num_speculative_tokens=tokens))


def _beside(name: str, config_of_draft: dict[str, Any], method: str, tokens: int = 3, **wanted: Any) -> ModelFacts:
    asked = Wanted(method=method, model="owner/draft", num_speculative_tokens=tokens, **wanted)
    return with_draft(facts(name), asked, config_of_draft)


def _ngram(name: str, tokens: int = 5) -> ModelFacts:
    return with_draft(facts(name), Wanted(method="ngram", num_speculative_tokens=tokens))


def test_layers_of_the_model_itself_are_as_large_as_their_maker_says():
    unique = sum(matrix.parameters for matrix in draft_matrices(_mtp(DEEPSEEK), alone=True))

    assert unique / 1e9 == pytest.approx(11.5, rel=0.01)


def test_a_head_of_eagle_3_is_as_large_as_its_file():
    head = _beside(LLAMA, EAGLE3, "eagle3")

    bare = draft_bytes(head, Parallel(), 0) - rotation_bytes(head.draft.model)  # type: ignore[union-attr,arg-type]

    fed, attention = 3 * 4096 * 4096, 8192 * (4096 + 2 * 1024) + 4096 * 4096
    assert bare == 2 * (fed + attention + 3 * 4096 * 14336 + 32000 * 4096 + 4 * 4096)
    assert bare / 1e6 == pytest.approx(850, rel=0.01)


def test_another_model_is_held_whole_with_its_embedding():
    both = _beside(LLAMA_70B, config(SMALL), "draft_model")

    assert draft_bytes(both, Parallel(), 0) == weight_bytes(facts(SMALL), Parallel())


def test_what_guesses_ahead_is_on_the_last_stage_alone_with_an_embedding_of_its_own():
    staged = _mtp(DEEPSEEK)
    alone, first, last = (
        draft_bytes(staged, parallel, stage)
        for parallel, stage in (
            (Parallel(tensor=8), 0),
            (Parallel(tensor=8, pipeline=2), 0),
            (Parallel(tensor=8, pipeline=2), 1),
        )
    )

    assert (first, last - alone) == (0, 2 * 129280 * 7168 // 8)


def test_words_seen_before_weigh_nothing_and_lie_on_the_gpu():
    looked_up, plain = _ngram(LLAMA), facts(LLAMA)
    asked = Asked(max_model_len=8192, max_num_seqs=256)
    old, new = (Engine(version=version) for version in ((0, 31), (0, 32)))

    def peak(engine: Engine) -> int:
        return activation_bytes(looked_up, Parallel(), options_of(looked_up, asked, engine, 24 * GIB))

    assert weight_bytes(looked_up, Parallel()) == weight_bytes(plain, Parallel())
    assert kv_layout(looked_up, Parallel()) == kv_layout(plain, Parallel())
    assert peak(new) - peak(old) == 4 * 256 * 8192


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_layers_that_guess_ahead_have_a_cache_beside_the_others(tensor: int):
    parallel = Parallel(tensor=tensor)
    head, other = _beside(LLAMA, EAGLE3, "eagle3"), _beside(LLAMA_70B, config(SMALL), "draft_model")

    assert kv_layout(head, parallel).block_bytes * 32 == kv_layout(facts(LLAMA), parallel).block_bytes * 33
    assert (
        kv_layout(other, parallel).block_bytes
        == kv_layout(facts(LLAMA_70B), parallel).block_bytes + kv_layout(facts(SMALL), parallel).block_bytes
    )


def test_a_layer_of_drafts_joins_the_group_of_layers_like_it():
    group = kv_layout(
        _beside("openai/gpt-oss-20b", EAGLE3 | {"head_dim": 64, "hidden_size": 2880}, "eagle3"), Parallel()
    )

    assert [each.layers for each in group.groups] == [13, 13]  # 12 with a window and 13 that see all


def test_states_are_kept_for_every_token_that_is_guessed():
    plain, ahead = facts(HYBRID), _mtp(HYBRID, tokens=2)
    asked = Asked(max_model_len=8192)
    demands = [options_of(each, asked, Engine(), 80 * GIB).demand(Parallel()) for each in (plain, ahead)]

    assert demands[1].state_blocks - demands[0].state_blocks == 2
    assert len(kv_layout(ahead, Parallel()).groups) >= len(kv_layout(plain, Parallel()).groups)


def test_choosing_among_guessed_tokens_and_capturing_them_takes_more():
    plain, ahead = facts(LLAMA), _ngram(LLAMA)
    plainly, aheadly = (options_of(each, Asked(max_num_seqs=64), Engine(), 24 * GIB) for each in (plain, ahead))

    assert sampler_bytes(ahead, aheadly, tokens=2048) > sampler_bytes(plain, plainly, tokens=2048)
    assert graph_bytes(ahead, aheadly) > graph_bytes(plain, plainly)


def test_an_embedding_in_the_file_of_a_head_is_counted():
    wanted = Wanted(method="eagle", model="owner/EAGLE-x", num_speculative_tokens=3)
    words = StoredTensor(name="embed_tokens.weight", type="F16", shape=(128256, 4096), size=2 * 128256 * 4096)
    bare, own = (with_draft(facts(LLAMA), wanted, EAGLE3, None, tensors) for tensors in ((), (words,)))

    assert draft_bytes(own, Parallel(), 0) - draft_bytes(bare, Parallel(), 0) == words.size


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("ngram", DraftMethod.NGRAM),
        ("yuhuili/EAGLE-LLaMA3-Instruct-8B", DraftMethod.EAGLE),
        ("AngelSlim/Qwen3-8B_eagle3", DraftMethod.EAGLE3),
        ("meta-llama/Llama-3.2-1B-Instruct", DraftMethod.DRAFT_MODEL),
    ],
)
def test_a_method_is_found_by_the_name_as_the_engine_does(model: str, method: DraftMethod):
    assert method_of(Wanted(model=model)) is method
    assert needs_documents(Wanted(model=model)) == (method is not DraftMethod.NGRAM)


def test_the_model_says_how_many_tokens_its_own_layers_guess():
    assert _mtp(DEEPSEEK).draft.tokens == 1  # type: ignore[union-attr]
    with pytest.raises(Malformed, match="num_speculative_tokens must be provided"):
        with_draft(facts(LLAMA), Wanted(method="ngram"))


def test_a_method_that_is_not_planned_is_named():
    with pytest.raises(Malformed, match="must be one of ngram, mtp, draft_model, eagle, eagle3, not 'medusa'"):
        method_of(Wanted(method="medusa"))


def test_a_model_whose_own_layers_are_not_known_is_not_sized():
    strange = replace(facts(LLAMA), architecture="NemotronHForCausalLM", draft_layers=1)

    with pytest.raises(Unsupported, match="how NemotronHForCausalLM drafts for itself cannot be sized"):
        with_draft(strange, Wanted(method="mtp"))


def _told(model: ModelFacts, parallel: Parallel, version: tuple[int, int] = (0, 33)) -> list[str]:
    return [refusal.message for refusal in refusals(model, parallel, Engine(version=version))]


def test_tokens_must_be_whole_rounds_of_the_layers_that_guess():
    three = with_draft(replace(facts(DEEPSEEK), draft_layers=3), Wanted(method="mtp", num_speculative_tokens=4))

    assert _told(three, Parallel()) == ["num_speculative_tokens:4 must be divisible by n_predict=3"]


def test_a_model_without_layers_to_guess_is_refused_them():
    assert _told(_mtp(LLAMA, tokens=1), Parallel()) == ["Unsupported speculative method: 'mtp'"]


@pytest.mark.parametrize(
    ("method", "asked", "sentence"),
    [
        ("eagle3", 2, "speculative_draft_tensor_parallel_size=2 cannot be other value than 1 or target model"),
        ("draft_model", 1, "'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same. Got 1 and 4."),
    ],
)
def test_a_draft_is_divided_as_the_model_is(method: str, asked: int, sentence: str):
    draft = EAGLE3 if method == "eagle3" else config(SMALL)

    found = _told(_beside(LLAMA_70B, draft, method, draft_tensor_parallel_size=asked), Parallel(tensor=4))

    assert len(found) == 1
    assert sentence in found[0]


def test_a_draft_must_be_divisible_too():
    narrow = config(SMALL, num_attention_heads=6, num_key_value_heads=2)

    assert "Total number of attention heads (6) must be divisible by tensor parallel size (4)." in _told(
        _beside(LLAMA_70B, narrow, "draft_model"), Parallel(tensor=4)
    )


def test_words_of_another_model_must_be_the_same():
    found = _told(_beside(LLAMA, config("Qwen/Qwen3-0.6B"), "draft_model"), Parallel())

    assert len(found) == 1
    assert found[0].startswith(
        "Target and draft model should have the same vocabulary size. Target model vocab_size=128256. Draft model "
        "vocab_size=151936."
    )


def test_a_model_without_states_for_eagle_3_is_refused_it():
    head = _beside("google/gemma-3-27b-it", EAGLE3, "eagle3")

    assert _told(head, Parallel()) == ["Model does not support EAGLE3 interface"]


def test_eagle_3_in_stages_wants_a_model_that_hands_its_states_on():
    taken, refused = (_beside(name, EAGLE3, "eagle3") for name in (LLAMA_70B, "openai/gpt-oss-120b"))

    assert _told(taken, Parallel(pipeline=2)) == []
    assert _told(refused, Parallel(pipeline=2)) == [
        "GptOssForCausalLM does not support eagle3 with pipeline parallelism"
    ]


def test_layers_of_the_model_itself_came_to_stages_with_0_18():
    staged = Parallel(tensor=8, pipeline=2)

    assert _told(_mtp(DEEPSEEK), staged, (0, 17)) == [NO_PIPELINE]
    assert _told(_mtp(DEEPSEEK), staged, (0, 18)) == []


def test_adapters_and_guesses_want_tokens_for_both():
    both = _ngram(LLAMA)
    asked = Asked(max_model_len=8192, max_num_seqs=512, max_num_batched_tokens=2048)
    adapted = replace(both, adapters=Adapters(count=1, rank=16))

    def told(model: ModelFacts) -> list[str]:
        return [each.message for each in option_refusals(model, options_of(model, asked, Engine(), 80 * GIB))]

    assert told(both) == []
    assert told(adapted) == ["Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens"]


@given(
    name=st.sampled_from([DEEPSEEK, HYBRID, "Qwen/Qwen3.6-35B-A3B", "XiaomiMiMo/MiMo-7B-Base"]),
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.integers(1, 3),
    tokens=st.integers(1, 4),
)
def test_guessing_ahead_never_takes_less_of_any_gpu(name: str, tensor: int, pipeline: int, tokens: int):
    plain = facts(name)
    ahead = _ngram(name, tokens)
    own = with_draft(
        replace(plain, draft_layers=plain.draft_layers or 1), Wanted(method="mtp", num_speculative_tokens=tokens)
    )
    parallel = Parallel(tensor=tensor, pipeline=pipeline)

    assert plain.architecture in KNOWN_TO_DRAFT
    for stage in range(pipeline):
        least = weight_bytes(plain, parallel, stage)
        assert weight_bytes(ahead, parallel, stage) == least
        assert (weight_bytes(own, parallel, stage) > least) == (stage == pipeline - 1)
        assert kv_layout(own, parallel, stage=stage).block_bytes >= kv_layout(plain, parallel, stage=stage).block_bytes


@given(
    broken=st.dictionaries(
        st.sampled_from(sorted(EAGLE3)), st.one_of(st.none(), st.integers(-1, 9), st.text(max_size=3))
    )
)
def test_whatever_a_draft_says_it_is_read_or_declined(broken: dict[str, Any]):
    for method in ("eagle", "eagle3", "draft_model"):
        try:
            found = _beside(LLAMA, {**EAGLE3, **broken}, method)
        except (Malformed, Unsupported):
            continue
        assert draft_bytes(found, Parallel(), 0) > 0


def test_a_configuration_that_is_no_draft_says_nothing_of_drafts():
    assert model_facts(config(LLAMA)).draft is None
