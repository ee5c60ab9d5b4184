"""What follows the mixer in each layer: one dense block, experts, or both."""

from dataclasses import replace

from libs.common.errors import Malformed
from libs.inference.planner.facts import Dense, Experts
from libs.inference.planner.families import Family
from libs.inference.planner.fields import Fields

Blocks = tuple[Dense | Experts, ...]
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk")


def feed_forward_of(config: Fields, family: Family, layers: int) -> list[Blocks]:
    """One tuple per layer, in order. Raises `Malformed` for a field that is missing or of no use."""
    pattern = config.text("hybrid_override_pattern", default="-")
    if pattern != "-":
        made = {"E": (_experts(config, family),) if "E" in pattern else (), "-": (_dense(config, family),)}
        return [made.get(letter, ()) for letter in pattern]
    if not config.count(*EXPERTS, default=0):
        return _all_dense(config, family, layers)
    experts = _experts(config, family)
    if config.flag("enable_moe_block"):
        return [(_dense(config, family), experts)] * layers
    return [(experts,) if _routed(config, index) else (_dense(config, family),) for index in range(layers)]


def _routed(config: Fields, index: int) -> bool:
    """Whether a layer routes: not among the first ones, nor named as dense, nor between two steps."""
    if index < config.count("first_k_dense_replace", default=0) or index in config.counts("mlp_only_layers"):
        return False
    step = config.count("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq", default=1)
    return step <= 1 or (index + 1) % step == 0


def _all_dense(config: Fields, family: Family, layers: int) -> list[Blocks]:
    """Gemma 3n names the width of each layer; where layers that share a cache are wider, they are twice as wide.

    Source: `models/gemma3n.py` (`Gemma3nDecoderLayer`), `models/gemma4.py` (`use_double_wide_mlp`).
    """
    if isinstance(config.values.get("intermediate_size"), list):
        widths = config.counts("intermediate_size")
        if len(widths) != layers or min(widths) < 1:
            field = f"{config.where}intermediate_size"
            raise Malformed(f"{field} must name {layers} widths of at least 1, not {len(widths)}", field=field)
        return [(Dense(intermediate=width, gated=family.gated),) for width in widths]
    plain = _dense(config, family)
    wide = replace(plain, intermediate=2 * plain.intermediate) if config.flag("use_double_wide_mlp") else plain
    own = layers - config.count("num_kv_shared_layers", default=0)
    return [(plain if index < own else wide,) for index in range(layers)]


def _dense(config: Fields, family: Family) -> Dense:
    names = ("intermediate_size_mlp",) if config.has("intermediate_size_mlp") else ("intermediate_size", "ffn_dim")
    return Dense(
        intermediate=config.count(*names, least=1),
        gated=family.gated,
        bias=config.flag("mlp_bias", default=family.feed_forward_bias),
    )


def _experts(config: Fields, family: Family) -> Experts:
    width = config.count("moe_intermediate_size", "intermediate_size", least=1)
    return Experts(
        count=config.count(*EXPERTS, least=1),
        chosen=config.count(*CHOSEN, default=1, least=1),
        intermediate=width,
        shared=_shared(config, family, width),
        shared_gate=family.shared_gate and config.has("shared_expert_intermediate_size"),
        gated=family.gated,
        bias=family.feed_forward_bias,
        latent=config.count("moe_latent_size", default=0),
    )


def _shared(config: Fields, family: Family, width: int) -> int:
    if config.has("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size"):
        return config.count("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size")
    if family.chunk_period:
        return width  # Llama 4 always has one shared expert and no field for it
    return width * config.count("n_shared_experts", "num_shared_experts", default=0)
