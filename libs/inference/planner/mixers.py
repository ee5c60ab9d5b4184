"""What mixes tokens in each layer: attention of some kind, or a state."""

from dataclasses import replace

from libs.common.errors import Malformed
from libs.inference.planner.facts import Attention, DeltaAttention, LatentAttention, Mixer, StateSpace
from libs.inference.planner.families import Family
from libs.inference.planner.fields import Fields

TYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "fp32": 4, "fp8": 1, "auto": 2}


def mixers_of(config: Fields, family: Family, layers: int) -> list[Mixer | None]:
    """One per layer, in order. Raises `Malformed` for a field that is missing or of no use."""
    pattern = config.text("hybrid_override_pattern", default="-")
    if pattern != "-":
        return [_nemotron(config, family, letter) for letter in _of_length(config, pattern, layers)]
    linear = config.part("linear_attn_config")
    if linear is not None:
        return _kimi(config, linear, layers)
    if family.latent or config.has("kv_lora_rank"):
        return [latent_attention(config)] * layers
    kinds = layer_kinds(config, family, layers)
    made: dict[str, Mixer] = {kind: _mixer(config, family, kind) for kind in set(kinds)}
    own = layers - config.count("num_kv_shared_layers", default=0)
    return [made[kind] if index < own else _sharing(made[kind]) for index, kind in enumerate(kinds)]


def _sharing(mixer: Mixer) -> Mixer:
    """Source: `models/gemma3n.py` (`Gemma3nAttention`), `models/gemma4.py` (`Gemma4Attention`)."""
    return replace(mixer, shared=True) if isinstance(mixer, Attention) else mixer


def _kimi(config: Fields, linear: Fields, layers: int) -> list[Mixer | None]:
    """Layers are counted from one. Source: `transformers_utils/configs/kimi_linear.py` (`is_kda_layer`)."""
    heads, width = linear.count("num_heads", least=1), linear.count("head_dim", least=1)
    delta = DeltaAttention(
        key_heads=heads,
        value_heads=heads,
        key_dim=width,
        value_dim=width,
        kernel=linear.count("short_conv_kernel_size", least=1),
        state_bytes=4,
        gate_rank=width,
    )
    latent, named = latent_attention(config), set(linear.counts("kda_layers"))
    return [delta if index in named else latent for index in range(1, layers + 1)]


def _of_length(config: Fields, pattern: str, layers: int) -> str:
    if len(pattern) != layers or set(pattern) - set("M*E-"):
        field = f"{config.where}hybrid_override_pattern"
        raise Malformed(f"{field} must be {layers} letters of M, *, E and -, not {pattern[:80]!r}", field=field)
    return pattern


def layer_kinds(config: Fields, family: Family, layers: int) -> list[str]:
    """The kind of each layer by `layer_types`, or as its family repeats them where the list is absent."""
    named = list(config.texts("layer_types"))
    if named:
        if len(named) != layers:
            field = f"{config.where}layer_types"
            raise Malformed(f"{field} must name {layers} layers, not {len(named)}", field=field)
        return named
    interval = config.count("full_attention_interval", default=0)
    if interval and config.has("linear_num_value_heads"):
        return _every(layers, interval, "linear_attention")
    period = config.count("sliding_window_pattern", "_sliding_window_pattern", default=family.sliding_period)
    if period and config.has("sliding_window"):
        return _every(layers, period, "sliding_attention")
    if family.chunk_period and config.has("attention_chunk_size"):
        return _every(layers, family.chunk_period, "chunked_attention")
    sliding = config.has("sliding_window") and config.flag("use_sliding_window", default=True)
    return ["sliding_attention" if sliding else "full_attention"] * layers


def _every(layers: int, period: int, others: str) -> list[str]:
    return ["full_attention" if (index + 1) % period == 0 else others for index in range(layers)]


def _mixer(config: Fields, family: Family, kind: str) -> Mixer:
    if kind == "linear_attention":
        return delta_attention(config)
    if kind not in ("full_attention", "sliding_attention", "chunked_attention"):
        field = f"{config.where}layer_types"
        raise Malformed(f"{field} names {kind!r}, which is no kind of layer known here", field=field)
    return attention(config, family, kind)


def attention(config: Fields, family: Family, kind: str = "full_attention") -> Attention:
    heads = config.count("num_attention_heads", least=1)
    kv_heads = config.count("num_key_value_heads", default=heads, least=1)
    given = config.has("head_dim")
    head_dim = config.count("head_dim", least=1) if given else config.count("hidden_size", least=heads) // heads
    everywhere = kind == "full_attention"
    if everywhere and config.has("global_head_dim"):
        head_dim = config.count("global_head_dim", least=1)
        kv_heads = config.count("num_global_key_value_heads", default=kv_heads, least=1)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=config.count("v_head_dim", default=head_dim, least=1),
        window=config.count("sliding_window", least=1) if kind == "sliding_attention" else None,
        chunk=config.count("attention_chunk_size", least=1) if kind == "chunked_attention" else None,
        query_key_norm=family.query_key_norm,
        input_bias=config.flag("attention_bias", "qkv_bias", default=family.input_bias),
        output_bias=family.output_bias,
        output_gate=config.flag("attn_output_gate", default=family.output_gate),
        values_are_keys=everywhere and config.flag("attention_k_eq_v"),
        sinks=family.sinks,
    )


def latent_attention(config: Fields) -> LatentAttention:
    return LatentAttention(
        heads=config.count("num_attention_heads", least=1),
        query_rank=config.count("q_lora_rank", default=0),
        latent_rank=config.count("kv_lora_rank", least=1),
        rope_dim=config.count("qk_rope_head_dim", least=1),
        plain_dim=config.count("qk_nope_head_dim", least=1),
        value_dim=config.count("v_head_dim", least=1),
        index_heads=config.count("index_n_heads", default=0),
        index_dim=config.count("index_head_dim", default=0),
    )


def delta_attention(config: Fields) -> DeltaAttention:
    return DeltaAttention(
        key_heads=config.count("linear_num_key_heads", least=1),
        value_heads=config.count("linear_num_value_heads", least=1),
        key_dim=config.count("linear_key_head_dim", least=1),
        value_dim=config.count("linear_value_head_dim", least=1),
        kernel=config.count("linear_conv_kernel_dim", least=1),
        state_bytes=type_bytes(config, "mamba_ssm_dtype"),
    )


def _nemotron(config: Fields, family: Family, letter: str) -> Mixer | None:
    if letter == "*":
        return attention(config, family)
    if letter != "M":
        return None
    return StateSpace(
        heads=config.count("mamba_num_heads", least=1),
        head_dim=config.count("mamba_head_dim", least=1),
        groups=config.count("n_groups", least=1),
        state=config.count("ssm_state_size", least=1),
        kernel=config.count("conv_kernel", least=1),
        state_bytes=type_bytes(config, "mamba_ssm_cache_dtype"),
    )


def type_bytes(config: Fields, *names: str) -> int:
    """The size of a number of the named type; two bytes where no type is named."""
    name = config.text(*names, default="auto").removeprefix("torch.")
    if name not in TYPE_BYTES:
        field = f"{config.where}{names[0]}"
        raise Malformed(f"{field} must be one of {', '.join(TYPE_BYTES)}, not {name!r}", field=field)
    return TYPE_BYTES[name]
