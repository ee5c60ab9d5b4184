"""How a model's weights are stored, from `quantization_config` or `hf_quant_config.json`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from libs.inference.planner.facts import Quantisation
from libs.inference.planner.fields import Fields, Unsupported

FLOAT8 = Quantisation(method="fp8", bits=8)
METHODS: Mapping[str, Quantisation] = {
    "fp8": FLOAT8,
    "fbgemm_fp8": replace(FLOAT8, method="fbgemm_fp8"),
    "awq": Quantisation(method="awq", bits=4, group=128, scale_bits=16, zero_points=True),
    "gptq": Quantisation(method="gptq", bits=4, group=128, scale_bits=16, zero_points=True),
    "auto-round": Quantisation(method="auto-round", bits=4, group=128, scale_bits=16, zero_points=True),
    "mxfp4": Quantisation(method="mxfp4", bits=4, group=32, scale_bits=8, experts_only=True),
    "nvfp4": Quantisation(method="nvfp4", bits=4, group=16, scale_bits=8),
    "int8": Quantisation(method="int8", bits=8),
    "bitsandbytes": Quantisation(method="bitsandbytes", bits=4, group=64, scale_bits=32),
}
"""What each method stores when its configuration does not say otherwise."""

ALIASES: Mapping[str, str] = {
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "auto_round": "auto-round",
    "modelopt_fp4": "nvfp4",
    "fp4": "nvfp4",
    "bnb": "bitsandbytes",
}
ALGORITHMS: Mapping[str, str] = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A16_AWQ": "awq",
}
CACHE_BITS = 8
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "backbone.")


def quantisation_of(config: Fields, separate: Fields | None = None) -> Quantisation | None:
    """None where nothing is quantised. `separate` is a parsed `hf_quant_config.json`.

    Raises `Unsupported` for a method that is not known, `Malformed` for a wrong field.
    """
    inner = config.part("text_config")
    found = config.part("quantization_config") or (inner.part("quantization_config") if inner else None)
    if separate is not None:
        return _modelopt(separate.part("quantization") or separate)
    if found is None:
        return None
    method = found.text("quant_method")
    if method == "compressed-tensors":
        return _compressed(found)
    if method == "modelopt":
        return _modelopt(found)
    return _refined(_known(method, found), found)


def cache_type_of(config: Fields, separate: Fields | None = None) -> str:
    """What a checkpoint says its cache is to be kept in; empty: nothing.

    Source: `utils/torch_utils.py` (`resolve_kv_cache_dtype_string`), `attention/layer.py` for compressed-tensors.
    """
    inner = config.part("text_config")
    found = config.part("quantization_config") or (inner.part("quantization_config") if inner else None)
    if separate is not None:
        found = separate.part("quantization") or separate
    if found is None:
        return ""
    scheme = found.part("kv_cache_scheme")
    eight = scheme is not None and scheme.count("num_bits", default=0) == CACHE_BITS
    return "fp8" if eight or found.text("kv_cache_quant_algo", default="none").upper() == "FP8" else ""


def _known(method: str, found: Fields) -> Quantisation:
    kind = METHODS.get(ALIASES.get(method, method))
    if kind is None:
        field = f"{found.where}quant_method"
        raise Unsupported(f"{field}: {method} is not a quantisation this planner can size", field=field)
    return kind


def _refined(kind: Quantisation, found: Fields) -> Quantisation:
    block = found.counts("weight_block_size")
    bits = found.count("bits", "w_bit", default=8 if found.flag("load_in_8bit") else kind.bits, least=1)
    group = found.count("group_size", "q_group_size", default=kind.group, least=-1)
    return replace(
        kind,
        bits=bits,
        group=max(group, 0),
        block=(block[0], block[1]) if len(block) == 2 else None,
        zero_points=kind.zero_points and found.flag("zero_point", default=True),
        skipped=_skipped(found, "modules_to_not_convert", "ignored_layers", "ignore"),
    )


def _modelopt(found: Fields) -> Quantisation | None:
    listed = found.part("quantized_layers")
    if listed is not None:
        named = [(_bare(name), _algorithm(layer)) for name in listed.values if (layer := listed.part(name))]
        return Quantisation(method="mixed", bits=0, named=tuple(named))
    if found.part("config_groups") is not None:
        return _compressed(found)
    return _algorithm(found) if found.has("quant_algo") else None


def _algorithm(found: Fields) -> Quantisation:
    method = found.text("quant_algo").upper()
    if method not in ALGORITHMS:
        field = f"{found.where}quant_algo"
        raise Unsupported(f"{field}: {method} is not a quantisation this planner can size", field=field)
    return replace(METHODS[ALGORITHMS[method]], skipped=_skipped(found, "exclude_modules", "ignore"))


def _compressed(found: Fields) -> Quantisation:
    groups = found.part("config_groups")
    if groups is None or not groups.values:
        field = f"{found.where}config_groups"
        raise Unsupported(f"{field} does not say how weights are stored", field=field)
    parts = [part for name in sorted(groups.values) if (part := groups.part(name))]
    skipped = _skipped(found, "ignore")
    if len(parts) == 1:
        return replace(_stored(parts[0]), skipped=skipped)
    named = [(_bare(target), _stored(part)) for part in parts for target in part.texts("targets")]
    return Quantisation(method="mixed", bits=0, named=tuple(named), skipped=skipped)


def _stored(group: Fields) -> Quantisation:
    weights = group.part("weights")
    if weights is None:
        field = f"{group.where}weights"
        raise Unsupported(f"{field} does not say how weights are stored", field=field)
    bits, width = weights.count("num_bits", least=1), weights.count("group_size", default=0, least=-1)
    floating = weights.text("type", default="int") == "float"
    kind = METHODS[_stored_as(bits, width, floating)]
    block = weights.counts("block_structure")
    return replace(
        kind,
        method=kind.method if floating else "compressed-tensors",
        bits=bits,
        group=max(width, 0),
        zero_points=not floating and not weights.flag("symmetric", default=True),
        experts_only=False,
        block=(block[0], block[1]) if len(block) == 2 else None,
    )


def _stored_as(bits: int, group: int, floating: bool) -> str:
    if not floating:
        return "int8" if bits == 8 else "gptq"
    if bits == 8:
        return "fp8"
    return "mxfp4" if group == 32 else "nvfp4"


def _skipped(found: Fields, *names: str) -> tuple[str, ...]:
    return tuple(_bare(name) for name in found.texts(*names))


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def storage_of(kind: Quantisation | None, module: str) -> Quantisation | None:
    """How one module is stored; None where it keeps its weights.

    vLLM's patterns: a whole name, its beginning, `*`, or `re:`. Source: `model_executor/layers/quantization/utils/
    quant_utils.py` (`is_layer_skipped`) and `compressed_tensors/utils.py` (`should_ignore_layer`).
    """
    if kind is None:
        return None
    names = _names(module)
    if any(_matches(pattern, name) for pattern in kind.skipped for name in names):
        return None
    if kind.method != "mixed":
        return kind
    return next((stored for name, stored in kind.named if any(_matches(name, each) for each in names)), None)


def _names(module: str) -> tuple[str, ...]:
    """What checkpoints call a module that vLLM builds of several."""
    single = module.replace(".gate_up_proj", ".gate_proj")
    if single.endswith(".experts"):
        single = f"{single}.0.down_proj"
    names = (module, single, single.replace(".shared_experts.", ".shared_expert."), single.replace(".mlp.", ".mixer."))
    return tuple(dict.fromkeys(names))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        return re.compile(pattern.removeprefix("re:"))
    return re.compile(re.escape(pattern).replace(r"\*", ".*"))


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return any(_compiled(pattern).match(f"{prefix}{module}") for prefix in ("", *PREFIXES))
    if "*" in pattern:
        return _compiled(pattern).match(module) is not None
    return module == pattern or module.startswith(f"{pattern}.") or module.endswith(f".{pattern}")
