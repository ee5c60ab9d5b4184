"""What an architecture's name says that its configuration does not: biases, norms, how blocks are built.

Source: the model classes of vLLM 0.33, `model_executor/models/*.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from libs.inference.planner.fields import Fields, Unsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The traits that models of one family share."""

    input_bias: bool = False
    output_bias: bool = False
    query_key_norm: bool = False
    norms: int = 2
    gated: bool = True
    feed_forward_bias: bool = False
    embedded_positions: int = 0
    latent: bool = False
    output_gate: bool = False
    shared_gate: bool = False
    sinks: bool = False
    sliding_period: int = 0
    chunk_period: int = 0
    tied: bool = False
    draft_layers: int = 0
    pipeline: bool = True
    known: bool = True


PLAIN = Family()
BIASED = Family(input_bias=True)
NORMED = Family(query_key_norm=True)
LATENT = Family(latent=True)
DELTA = Family(query_key_norm=True, output_gate=True, shared_gate=True)
GEMMA = Family(norms=4, query_key_norm=True, sliding_period=6, tied=True)
GEMMA_3N = replace(GEMMA, sliding_period=5, pipeline=False)

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Mistral3ForConditionalGeneration"), PLAIN),
    **dict.fromkeys(("Phi3ForCausalLM", "GraniteForCausalLM", "MixtralForCausalLM"), PLAIN),
    **dict.fromkeys(("Qwen2ForCausalLM", "MiMoForCausalLM"), BIASED),
    **dict.fromkeys(("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"), BIASED),
    "Qwen2MoeForCausalLM": Family(input_bias=True, shared_gate=True),
    **dict.fromkeys(("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "MiniMaxM2ForCausalLM"), NORMED),
    **dict.fromkeys(("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"), NORMED),
    "Glm4MoeForCausalLM": Family(input_bias=True, query_key_norm=True),
    "Qwen3NextForCausalLM": replace(DELTA, draft_layers=1),
    **dict.fromkeys(("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"), DELTA),
    "Gemma2ForCausalLM": Family(norms=4, sliding_period=2, tied=True),
    **dict.fromkeys(("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), GEMMA),
    "Gemma4ForConditionalGeneration": GEMMA,
    **dict.fromkeys(("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"), GEMMA_3N),
    "KimiLinearForCausalLM": LATENT,
    "GptOssForCausalLM": Family(input_bias=True, output_bias=True, feed_forward_bias=True, sinks=True),
    "Llama4ForConditionalGeneration": Family(chunk_period=4),
    **dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"), LATENT),
    **dict.fromkeys(("GlmMoeDsaForCausalLM", "KimiK25ForConditionalGeneration"), LATENT),
    "MistralLarge3ForCausalLM": LATENT,
    "NemotronHForCausalLM": Family(norms=1, gated=False),
    "OPTForCausalLM": Family(
        input_bias=True, output_bias=True, gated=False, feed_forward_bias=True, embedded_positions=2, tied=True
    ),
}

UNKNOWN = Family(pipeline=False, known=False)
NOBODY: frozenset[str] = frozenset()

SHARING = frozenset({"Gemma3nForCausalLM", "Gemma3nForConditionalGeneration", "Gemma4ForConditionalGeneration"})
"""Architectures whose layers share a cache or add from tables of their own, as it is counted here.

Source: `models/gemma3n.py`, `models/gemma4.py`.
"""

STRANGE: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("compress_ratios", "hc_mult", "sparse_attention_config", "block_configs", "ssm_cfg"), NOBODY),
    **dict.fromkeys(("hybrid_layer_pattern", "share_expert_dim", "attn_config", "ffn_config"), NOBODY),
    **dict.fromkeys(("encoder_layers", "attn_res_block_size", "routed_expert_hidden_size"), NOBODY),
    **dict.fromkeys(("mla_use_output_gate",), NOBODY),
    "linear_attn_config": frozenset({"KimiLinearForCausalLM"}),
    "linear_num_heads": NOBODY,
    **dict.fromkeys(("altup_num_inputs", "num_kv_shared_layers", "hidden_size_per_layer_input"), SHARING),
}
"""Fields that change how a model is built, and the architectures of which that is counted here."""


def family_of(architecture: str, config: Fields) -> Family:
    """The traits of an architecture; `UNKNOWN` ones for a name that is not in the table.

    Raises `Unsupported` where a field says that layers are built in a way that is not counted here.
    """
    for name, counted in STRANGE.items():
        if config.values.get(name) and architecture not in counted:
            field = f"{config.where}{name}"
            raise Unsupported(f"{field}: {architecture} is built in a way this planner cannot size", field=field)
    return FAMILIES.get(architecture, UNKNOWN)
