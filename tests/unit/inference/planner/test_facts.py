"""Facts read from configurations as they were published."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed, MeshError
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.facts import Attention, Certainty, DeltaAttention, Experts, LatentAttention, StateSpace
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.matrices import Part
from libs.inference.planner.parameters import active_parameter_count, parameter_count, parameters_by_part
from libs.inference.planner.quantisation import storage_of
from tests.unit.inference.planner.published import config, facts, models

EXACT = [
    *("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-2-7b-hf", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-8B"),
    *("Qwen/Qwen3-30B-A3B", "Qwen/Qwen2-57B-A14B-Instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    *("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3.2", "moonshotai/Kimi-K2-Instruct", "zai-org/GLM-4.5-Air"),
    *("openai/gpt-oss-120b", "google/gemma-2-27b-it", "google/gemma-3-1b-it", "facebook/opt-6.7b"),
]


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_the_maker_states(name: str):
    assert parameter_count(facts(name)) / 1e9 == pytest.approx(models()[name]["parameters_in_billions"], rel=1e-3)


def test_a_llama_has_exactly_the_parameters_of_its_checkpoint():
    assert parameter_count(facts("meta-llama/Llama-3.1-8B-Instruct")) == 8_030_261_248


def test_of_a_mixture_only_the_chosen_experts_are_active():
    assert active_parameter_count(facts("Qwen/Qwen3-30B-A3B")) == pytest.approx(3.35e9, rel=0.01)


def test_a_tied_output_layer_is_counted_once():
    assert Part.HEAD not in parameters_by_part(facts("Qwen/Qwen2.5-0.5B-Instruct"))
    assert Part.HEAD in parameters_by_part(facts("Qwen/Qwen2.5-7B-Instruct"))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {Attention: 32}),
        ("deepseek-ai/DeepSeek-V3", {LatentAttention: 61}),
        ("Qwen/Qwen3.5-35B-A3B", {DeltaAttention: 30, Attention: 10}),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {StateSpace: 23, Attention: 6}),
    ],
)
def test_layers_are_told_apart_by_what_mixes_tokens(name: str, kinds: dict[type, int]):
    assert Counter(type(mixer) for mixer in facts(name).mixers) == kinds


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("openai/gpt-oss-20b", {128: 12, None: 12}),
        ("google/gemma-3-1b-it", {512: 22, None: 4}),
        ("mistralai/Mistral-7B-v0.1", {4096: 32}),
    ],
)
def test_layers_that_look_back_a_window_are_counted(name: str, windows: dict[int | None, int]):
    mixers = [mixer for mixer in facts(name).mixers if isinstance(mixer, Attention)]

    assert Counter(mixer.window for mixer in mixers) == windows


def test_three_of_four_layers_of_llama_4_attend_in_chunks():
    mixers = facts("meta-llama/Llama-4-Scout-17B-16E-Instruct").mixers

    assert Counter(mixer.chunk for mixer in mixers if isinstance(mixer, Attention)) == {8192: 36, None: 12}


def test_the_first_layers_of_deepseek_are_dense_and_the_others_share_an_expert():
    experts = facts("deepseek-ai/DeepSeek-V3").experts

    assert len(experts) == 58
    assert experts[0] == Experts(count=256, chosen=8, intermediate=2048, shared=2048)


def test_text_within_a_vision_model_is_read_from_its_own_part():
    seen = facts("Qwen/Qwen3-VL-30B-A3B-Instruct")

    assert seen.vision is not None
    assert (seen.hidden, seen.vision.heads) == (2048, 16)


def test_an_unknown_architecture_is_read_as_a_plain_one_with_low_certainty():
    found = model_facts(config("meta-llama/Llama-3.1-8B-Instruct", architectures=["NewForCausalLM"]))

    assert found.certainty is Certainty.LOW
    assert "NewForCausalLM" in found.doubts[0]


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V4-Flash", "moonshotai/Kimi-K3", "XiaomiMiMo/MiMo-V2-Flash"])
def test_layers_of_a_kind_not_counted_here_are_refused_by_the_name_of_the_field(name: str):
    with pytest.raises(Unsupported) as refused:
        model_facts(models()[name]["config"])

    assert str(refused.value.details["field"]).split(".")[-1] in refused.value.message


@pytest.mark.parametrize("field", ["architectures", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_field_is_named(field: str):
    with pytest.raises(Malformed) as refused:
        model_facts(config("meta-llama/Llama-3.1-8B-Instruct", **{field: None}))

    assert refused.value.details["field"] == field


@pytest.mark.parametrize("wrong", [-1, 0, 1.5, "32", True, [32], {}])
def test_a_field_of_the_wrong_kind_is_named_with_what_was_found(wrong: object):
    with pytest.raises(Malformed) as refused:
        model_facts(config("meta-llama/Llama-3.1-8B-Instruct", num_hidden_layers=wrong))

    assert refused.value.details["field"] == "num_hidden_layers"
    assert repr(wrong) in refused.value.message


def test_a_list_of_layers_of_another_length_is_refused():
    with pytest.raises(Malformed, match="layer_types must name 24 layers, not 2"):
        model_facts(config("openai/gpt-oss-20b", layer_types=["full_attention", "sliding_attention"]))


@given(st.dictionaries(st.sampled_from(sorted(config("openai/gpt-oss-20b"))), st.none() | st.integers() | st.text()))
def test_whatever_a_configuration_holds_it_is_read_or_declined(changes: dict[str, object]):
    assert _layers_or_wrong_field({**config("openai/gpt-oss-20b"), **changes})


def _layers_or_wrong_field(document: dict[str, object]) -> object:
    try:
        return model_facts(document).layers
    except MeshError as declined:
        return declined.details["field"]


@pytest.mark.parametrize(
    ("name", "module", "bits"),
    [
        ("Qwen/Qwen3-30B-A3B-FP8", "layers.3.self_attn.q_proj", 8),
        ("Qwen/Qwen3-30B-A3B-FP8", "layers.3.mlp.gate", None),
        ("openai/gpt-oss-20b", "layers.3.self_attn.q_proj", None),
        ("openai/gpt-oss-20b", "layers.3.mlp.experts", 4),
        ("moonshotai/Kimi-K2.5", "layers.3.mlp.shared_experts.gate_up_proj", None),
        ("moonshotai/Kimi-K2.5", "layers.3.mlp.experts", 4),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "layers.0.linear_attn.out_proj", 8),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "layers.0.mlp.shared_experts.down_proj", 4),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "layers.0.linear_attn.conv1d", None),
    ],
)
def test_each_class_of_weights_is_stored_as_its_checkpoint_says(name: str, module: str, bits: int | None):
    stored = storage_of(facts(name).quantisation, module)

    assert (stored.bits if stored else None) == bits


def test_an_unknown_quantisation_is_refused_by_name():
    with pytest.raises(Unsupported, match="brand_new is not a quantisation"):
        model_facts(config("Qwen/Qwen3-8B", quantization_config={"quant_method": "brand_new"}))


def test_heads_without_any_width_are_declined():
    with pytest.raises(Malformed, match="hidden_size must be a whole number of at least 32, not 9"):
        model_facts(config("meta-llama/Llama-3.1-8B-Instruct", hidden_size=9, head_dim=None))


GEMMA_3N = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": [16384] * 35,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 15,
        "altup_num_inputs": 4,
        "laurel_rank": 64,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    },
}
"""The larger Gemma 3n, as far as its configuration sizes what it does with text."""

KIMI_LINEAR = {
    "architectures": ["KimiLinearForCausalLM"],
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "mla_use_nope": True,
    "vocab_size": 163840,
    "linear_attn_config": {
        "kda_layers": [layer for layer in range(1, 27) if layer % 4],
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
}
"""Kimi Linear, of 48 thousand million parameters, of which a token uses three."""


def test_tables_of_every_layer_are_counted():
    known = model_facts(GEMMA_3N)

    assert parameters_by_part(known)[Part.EMBEDDING] == 262400 * 2048 + 262144 * 35 * 256
    assert parameter_count(known) / 1e9 == pytest.approx(6.87, rel=0.01)  # 7.85 with its encoders of 0.98
    assert (known.pipeline, known.certainty) == (False, Certainty.EXACT)


def test_the_last_layers_read_what_others_keep():
    known = model_facts(GEMMA_3N)

    assert [mixer.shared for mixer in known.mixers if isinstance(mixer, Attention)] == [False] * 20 + [True] * 15
    queries, keys = 2 * 2048 * 2048, 2 * 2048 * 512
    assert parameters_by_part(known)[Part.ATTENTION] == 35 * queries + 20 * keys


def test_every_layer_of_its_own_width_must_be_named():
    text = {**GEMMA_3N["text_config"], "intermediate_size": [16384] * 3}  # type: ignore[dict-item]

    with pytest.raises(Malformed, match=r"text_config\.intermediate_size must name 35 widths"):
        model_facts({**GEMMA_3N, "text_config": text})


def test_layers_without_a_cache_of_their_own_may_be_twice_as_wide():
    wide = config("google/gemma-4-E2B-it", num_kv_shared_layers=20, use_double_wide_mlp=True)
    wide |= {"intermediate_size": 6144, "vocab_size": 262144, "sliding_window": 512}

    widths = [block.intermediate for layer in model_facts(wide).layers for block in layer.feed_forward]

    assert widths == [6144] * 15 + [12288] * 20


def test_gates_of_every_channel_are_counted():
    known = model_facts(KIMI_LINEAR)

    assert parameter_count(known) / 1e9 == pytest.approx(49, rel=0.01)
    assert (active_parameter_count(known) - 163840 * 2304) / 1e9 == pytest.approx(3, rel=0.05)  # its embedding apart
    kinds = Counter(type(mixer) for mixer in known.mixers)
    assert kinds == {DeltaAttention: 20, LatentAttention: 7}


@pytest.mark.parametrize("field", ["attn_res_block_size", "routed_expert_hidden_size", "mla_use_output_gate"])
def test_what_its_successor_adds_is_named(field: str):
    with pytest.raises(Unsupported, match=field):
        model_facts({**KIMI_LINEAR, field: 12})


def test_layers_that_vllm_would_not_find_are_named():
    """Where transformers wrote the configuration anew: vLLM reads `linear_attn_config`, and it is gone."""
    plain = {name: value for name, value in KIMI_LINEAR.items() if name != "linear_attn_config"}

    with pytest.raises(Unsupported, match="linear_num_heads"):
        model_facts({**plain, "layer_types": ["linear_attention"] * 27, "linear_num_heads": 32})


@pytest.mark.parametrize(
    ("told", "length", "field"),
    [
        ({"model_max_length": 1048576}, 1048576, "model_max_length"),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072, "model_max_length"),
        ({"max_position_embeddings": 8192, "max_seq_len": 2048}, 2048, "max_seq_len"),
        ({}, 0, "max_position_embeddings"),
    ],
)
def test_the_length_is_limited_by_the_field_that_vllm_heeds(told: dict[str, int], length: int, field: str):
    known = model_facts({**KIMI_LINEAR, **told})

    assert (known.max_position, known.length_field) == (length, field)


@pytest.mark.parametrize("field", ["num_kv_shared_layers", "hidden_size_per_layer_input", "altup_num_inputs"])
def test_sharing_layers_of_an_architecture_not_known_to_share_are_named(field: str):
    with pytest.raises(Unsupported, match=field):
        model_facts(config("meta-llama/Llama-3.1-8B-Instruct", **{field: 4}))
