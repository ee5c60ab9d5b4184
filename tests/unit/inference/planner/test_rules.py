"""Divisions that vLLM refuses, as users met them, and divisions that it takes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.planner.architectures import model_facts
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.kv_cache import Demand, kv_layout
from libs.inference.planner.memory import GIB, Verdict, start, whole
from libs.inference.planner.options import Asked, options_of
from libs.inference.planner.rules import NO_PIPELINE, refusals
from libs.inference.planner.sentences import capability_refusal, option_refusals, too_small
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.split import Manner, Parallel
from libs.inference.planner.versions import Engine, engine_of
from tests.unit.inference.planner.published import config, facts


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "Qwen/Qwen2-57B-A14B-Instruct",
            8,
            "Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        ),
        (
            "meta-llama/Llama-2-13b-hf",
            3,
            "Total number of attention heads (40) must be divisible by tensor parallel size (3).",
        ),
        (
            "Qwen/Qwen3-30B-A3B-FP8",
            4,
            "The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.",
        ),
        (
            "deepseek-ai/DeepSeek-V3",
            32,
            "The output_size of gate's and up's weight = 64 is not divisible by weight quantization block_n = 128.",
        ),
    ],
)
def test_a_division_is_refused_in_the_words_of_the_engine(name: str, tensor: int, message: str):
    assert message in [refusal.message for refusal in refusals(facts(name), Parallel(tensor=tensor))]


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", Parallel(tensor=16)),
        ("Qwen/Qwen3-30B-A3B", Parallel(tensor=8)),
        ("openai/gpt-oss-120b", Parallel(tensor=4)),
        ("zai-org/GLM-5-FP8", Parallel(tensor=8)),
        ("deepseek-ai/DeepSeek-V3", Parallel(tensor=8, pipeline=4)),
        ("Qwen/Qwen3-30B-A3B-FP8", Parallel(tensor=4, expert_parallel=True)),
    ],
)
def test_a_division_that_users_run_is_taken(name: str, parallel: Parallel):
    assert refusals(facts(name), parallel) == []


def _gptq_of(name: str) -> ModelFacts:
    return model_facts(config(name, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}))


def test_experts_narrower_than_a_group_are_refused():
    found = refusals(_gptq_of("Qwen/Qwen3-235B-A22B"), Parallel(tensor=8))

    assert "quantisation_group" in [refusal.code for refusal in found]
    assert refusals(_gptq_of("Qwen/Qwen3-235B-A22B"), Parallel(tensor=4)) == []


def test_an_unknown_architecture_is_not_trusted_with_a_pipeline():
    unknown = model_facts(config("meta-llama/Llama-3.1-8B-Instruct", architectures=["NewForCausalLM"]))

    assert [refusal.code for refusal in refusals(unknown, Parallel(pipeline=2))] == ["pipeline_unsupported"]


@given(st.sampled_from(["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-FP8", "google/gemma-3-1b-it"]))
def test_one_gpu_is_never_refused(name: str):
    assert refusals(facts(name), Parallel()) == []


@given(st.integers(1, 64))
def test_what_is_taken_divides_the_heads(tensor: int):
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")

    assert bool(refusals(llama, Parallel(tensor=tensor))) == (32 % tensor != 0)


LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
THREE = {"num_attention_heads": 24, "num_key_value_heads": 6, "hidden_size": 3072, "vocab_size": 32000}


def _messages(changes: dict[str, object], parallel: Parallel, name: str = LLAMA) -> list[str]:
    return [refusal.message for refusal in refusals(model_facts(config(name, **changes)), parallel)]


@pytest.mark.parametrize(
    ("changes", "parallel", "message"),
    [
        (THREE, Parallel(tensor=4), "6 is not divisible by 4"),
        (THREE | {"num_attention_heads": 32, "hidden_size": 4096}, Parallel(tensor=8), "8 is not divisible by 6"),
        (THREE, Parallel(tensor=3), "32000 is not divisible by 3"),
        (
            {"quantization_config": FP8_BLOCKS, "intermediate_size": 14400},
            Parallel(tensor=2),
            "Weight output_partition_size = 7200 is not divisible by weight quantization block_n = 128.",
        ),
        (
            {"quantization_config": FP8_BLOCKS, "intermediate_size": 14400},
            Parallel(tensor=2),
            "Weight input_size_per_partition = 7200 is not divisible by weight quantization block_k = 128.",
        ),
        (
            {"quantization_config": FP8_BLOCKS, "head_dim": 64},
            Parallel(tensor=8),
            "Weight output_partition_size = 64 is not divisible by weight quantization block_n = 128.",
        ),
        (
            {"quantization_config": AWQ, "intermediate_size": 14368},
            Parallel(tensor=2),
            "Weight output_size_per_partition = 7184 is not divisible by min_thread_n = 64. Consider reducing "
            "tensor_parallel_size or running with --quantization gptq.",
        ),
        (
            {"quantization_config": AWQ, "intermediate_size": 14400},
            Parallel(tensor=2),
            "Weight input_size_per_partition = 7200 is not divisible by min_thread_k = 128. Consider reducing "
            "tensor_parallel_size or running with --quantization gptq.",
        ),
        (
            {"quantization_config": AWQ | {"group_size": 256}, "intermediate_size": 14592},
            Parallel(tensor=2),
            "Weight input_size_per_partition = 7296 is not divisible by group_size = 256. Consider reducing "
            "tensor_parallel_size or running with --quantization gptq.",
        ),
        ({}, Parallel(pipeline=64), "32 layers cannot be divided over 64 stages."),
    ],
)
def test_every_rule_of_a_division_is_told_in_the_words_of_the_engine(
    changes: dict[str, object], parallel: Parallel, message: str
):
    assert any(told.startswith(message) for told in _messages(changes, parallel))


def test_a_shared_expert_narrower_than_a_block_is_refused_also_where_experts_are_whole():
    whole_experts = refusals(facts("deepseek-ai/DeepSeek-V3"), Parallel(tensor=32, expert_parallel=True))
    told = [refusal.message for refusal in whole_experts]
    assert "Weight input_size_per_partition = 64 is not divisible by weight quantization block_k = 128." in told


def test_the_heads_of_an_image_encoder_have_to_divide_too():
    found = refusals(facts("Qwen/Qwen2.5-VL-72B-Instruct"), Parallel(tensor=32))
    assert ("vision_heads", "16 is not divisible by 32") in [(each.code, each.message) for each in found]


def test_the_padded_vocabulary_is_what_has_to_divide():
    assert _messages({"vocab_size": 32001}, Parallel(tensor=8)) == []


def test_experts_that_are_kept_whole_may_be_dealt_out_unevenly():
    changes = {"num_experts": 60}
    assert _messages(changes, Parallel(tensor=8, expert_parallel=True), "Qwen/Qwen3-30B-A3B") == []


@pytest.mark.parametrize(
    "architecture",
    [
        *("Mamba2ForCausalLM", "Zamba2ForCausalLM", "Gemma3nForConditionalGeneration", "HrmTextForCausalLM"),
        *("IQuestLoopCoderForCausalLM", "DoryForCausalLM", "DomynEdgeForCausalLM", "AliceAIForCausalLM"),
    ],
)
def test_an_architecture_without_pipelines_is_refused_one(architecture: str):
    assert _messages({"architectures": [architecture]}, Parallel(pipeline=2)) == [NO_PIPELINE]


def test_options_that_contradict_one_another_are_told_in_the_words_of_the_engine():
    asked = Asked(max_model_len=200_000, max_num_batched_tokens=64, max_num_seqs=128)
    told = [each.message for each in option_refusals(facts(LLAMA), options_of(facts(LLAMA), asked, Engine(), 80 * GIB))]
    assert told[0].startswith(
        "User-specified max_model_len (200000) is greater than the derived max_model_len "
        "(max_position_embeddings=131072 or model_max_length=None in model's config.json)."
    )
    assert told[1] == "max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (128)."


@pytest.mark.parametrize(
    ("name", "capability", "words"),
    [
        (LLAMA, (6, 1), "vLLM needs compute capability 7.0 or higher, this GPU has 6.1."),
        (
            "openai/gpt-oss-20b",
            (7, 5),
            "The quantization method mxfp4 is not supported for the current GPU. Minimum capability: 80. Current "
            "capability: 75.",
        ),
    ],
)
def test_a_gpu_that_is_too_old_is_told_in_the_words_of_the_engine(name: str, capability: tuple[int, int], words: str):
    found = capability_refusal(facts(name).quantisation, capability)
    assert found is not None
    assert found.message == words


def _start(name: str, gib: float, **asked: object) -> tuple[Verdict, str]:
    known = facts(name)
    options = options_of(known, Asked(**asked), Engine(), int(gib * GIB))  # type: ignore[arg-type]
    found = start(Sizes(known), Parallel(), options, [whole(int(gib * GIB))])
    return found.verdict, too_small(found, Parallel(), options, 1, 0).message


def test_sequences_beyond_the_blocks_for_their_states_are_refused_unless_no_graphs_are_captured():
    hybrid = "Qwen/Qwen3.6-27B"
    verdict, told = _start(hybrid, 80, max_model_len=4096, max_num_seqs=1024, max_num_batched_tokens=2048)
    assert verdict is Verdict.FEW_STATES
    assert told.startswith("max_num_seqs (1024) exceeds available Mamba cache blocks (")
    assert "Each decode sequence requires one Mamba cache block, so CUDA graph capture cannot proceed." in told
    for options in ({"max_num_seqs": 8}, {"max_num_seqs": 1024, "enforce_eager": True}):
        assert _start(hybrid, 80, max_model_len=4096, max_num_batched_tokens=2048, **options)[0] is Verdict.FITS


def test_a_block_of_a_hybrid_holds_as_many_tokens_as_the_engine_logged():
    """Logged by vLLM 0.24 on an H100: 976 blocks, 5.71 requests of 262,144 tokens, 1,496,213 tokens."""
    known = facts("nvidia/Qwen3.6-27B-NVFP4")
    options = options_of(known, Asked(), engine_of("0.24.0"), 80 * GIB)
    layout = kv_layout(known, Parallel(), cache_type=options.kv_cache_dtype)
    demand = Demand(max_model_len=262_144, tokens_in_flight=16_384)
    assert options.kv_cache_dtype == "fp8"
    assert layout.groups[0].tokens == 1568
    assert f"{layout.concurrency(976, demand):.2f}" == "5.71"
    assert layout.tokens(976, demand) == 1_496_213


def test_a_checkpoint_says_what_its_cache_is_kept_in_unless_somebody_asks_otherwise():
    known = facts("nvidia/Llama-3.1-70B-Instruct-FP8")
    new, old, asked = (
        options_of(known, Asked(kv_cache_dtype=kind), engine_of(version), 80 * GIB).kv_cache_dtype
        for kind, version in (("auto", "0.33.0"), ("auto", "0.9.0"), ("bfloat16", "0.33.0"))
    )
    assert (new, old, asked) == ("fp8", "auto", "bfloat16")


def _shared(context: int, tensor: int) -> Parallel:
    return Parallel(tensor=tensor, manner=Manner(context=context))


@pytest.mark.parametrize(
    ("name", "parallel", "sentence"),
    [
        (LLAMA, _shared(3, 16), "tp_size=16 must be divisible by dcp_size=3."),
        (
            LLAMA,
            _shared(2, 8),
            "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` (8) to be greater than the "
            "model's total number of KV heads (8). Increase `--tensor-parallel-size` or set "
            "`--decode-context-parallel-size 1`.",
        ),
        (
            LLAMA,
            _shared(4, 16),
            "`--decode-context-parallel-size` (4) exceeds the maximum supported value (2) for "
            "`--tensor-parallel-size` (16) and 8 model KV heads.",
        ),
    ],
)
def test_ranks_share_the_tokens_of_a_cache_only_where_heads_are_replicated(
    name: str, parallel: Parallel, sentence: str
):
    assert sentence in [refusal.message for refusal in refusals(facts(name), parallel)]


def test_every_head_of_keys_needs_queries_for_all_that_share_it():
    changed = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 96 * 64}

    assert _messages(changed, _shared(2, 12)) == [
        "The model's number of query heads per KV head (3) must be divisible by `--decode-context-parallel-size` (2) "
        "for GQA/MQA."
    ]


def test_ranks_of_latent_attention_may_share_its_tokens():
    assert refusals(facts("deepseek-ai/DeepSeek-V3"), _shared(8, 8)) == []
    assert refusals(facts(LLAMA), _shared(2, 16)) == []


QWEN_MOE = "Qwen/Qwen3-30B-A3B"


@pytest.mark.parametrize(
    ("name", "parallel", "sentence"),
    [
        (
            LLAMA,
            Parallel(tensor=2, expert_parallel=True),
            "Number of experts in the model must be greater than 0 when expert parallelism is enabled.",
        ),
        (
            QWEN_MOE,
            Parallel(tensor=2, manner=Manner(balanced=True)),
            "enable_expert_parallel must be True to use EPLB.",
        ),
        (
            QWEN_MOE,
            Parallel(expert_parallel=True, manner=Manner(balanced=True)),
            "EPLB requires tensor, prefill-context, or data parallelism, but got TP=1, PCP=1, DP=1.",
        ),
        (
            QWEN_MOE,
            Parallel(tensor=4, expert_parallel=True, manner=Manner(balanced=True, redundant=2)),
            "EPLB currently only supports even distribution of experts across ranks. Got 130 experts and 4 EP ranks.",
        ),
        (
            QWEN_MOE,
            Parallel(tensor=4, expert_parallel=True, manner=Manner(redundant=4)),
            "num_redundant_experts is set to 4 but EPLB is not enabled. Either enable EPLB or unset "
            "num_redundant_experts.",
        ),
    ],
)
def test_experts_move_only_as_the_engine_lets_them(name: str, parallel: Parallel, sentence: str):
    assert [refusal.message for refusal in refusals(facts(name), parallel)] == [sentence]


def test_experts_that_are_dealt_out_evenly_may_move():
    parallel = Parallel(tensor=4, expert_parallel=True, manner=Manner(balanced=True, redundant=4))

    assert refusals(facts(QWEN_MOE), parallel) == []


@pytest.mark.parametrize(
    ("architecture", "refused"),
    [("Qwen2_5_VLForConditionalGeneration", False), ("Gemma3ForConditionalGeneration", True)],
)
def test_an_encoder_that_every_rank_holds_need_not_divide(architecture: str, refused: bool):
    model = replace(facts("Qwen/Qwen2.5-VL-72B-Instruct"), architecture=architecture)

    codes = [each.code for each in refusals(model, Parallel(tensor=32, manner=Manner(whole_encoder=True)))]

    assert ("vision_heads" in codes) == refused


def test_layers_that_share_a_cache_must_be_on_the_stage_of_its_owner():
    shared = model_facts(
        config("google/gemma-4-E2B-it", num_kv_shared_layers=20, intermediate_size=6144, vocab_size=262144)
    )

    assert refusals(shared, Parallel()) == []
    assert [each.message for each in refusals(shared, Parallel(pipeline=2))] == [
        "Specified KV sharing target layer for layers.18.self_attn.attn is not valid: target layer "
        "layers.14.self_attn.attn is not a valid Attention layer in the model."
    ]
