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

STRANGE = (
    *("compress_ratios", "hc_mult", "linear_attn_config", "sparse_attention_config", "block_configs", "ssm_cfg"),
    *("hybrid_layer_pattern", "share_expert_dim", "attn_config", "ffn_config", "encoder_layers", "altup_num_inputs"),
)
"""Fields that change how a model is built in ways that are not counted here."""


def family_of(architecture: str, config: Fields) -> Family:
    """The traits of an architecture; `UNKNOWN` ones for a name that is not in the table.

    Raises `Unsupported` where a field says that layers are built in a way that is not counted here.
    """
    for name in STRANGE:
        if config.values.get(name):
            field = f"{config.where}{name}"
            raise Unsupported(f"{field}: {architecture} is built in a way this planner cannot size", field=field)
    for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if config.count(name, default=0):
            field = f"{config.where}{name}"
            raise Unsupported(f"{field}: layers that share what they hold cannot be sized", field=field)
    return FAMILIES.get(architecture, UNKNOWN)
