"""What a user says of a model that its configuration does not, or that contradicts it."""

from collections.abc import Mapping
from dataclasses import replace

from libs.common.errors import Malformed
from libs.inference.planner.facts import Adapters, ModelFacts
from libs.inference.planner.quantisation import ALIASES, METHODS

DTYPES: Mapping[str, int] = {"auto": 0, "half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
"""Bytes of a number. Source: `config/model.py` (`_STR_DTYPE_TO_TORCH_DTYPE`)."""


def with_dtype(facts: ModelFacts, dtype: str | None) -> ModelFacts:
    """Raises `Malformed` for a type that is not known."""
    if dtype is None or dtype == "auto":
        return facts
    if dtype not in DTYPES:
        raise Malformed(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}", field="dtype")
    return replace(facts, type_bytes=DTYPES[dtype])


def with_adapters(facts: ModelFacts, count: int | None, rank: int) -> ModelFacts:
    """With room for so many LoRA adapters at once; None: for none."""
    return facts if count is None else replace(facts, adapters=Adapters(count=count, rank=rank))


def with_quantisation(facts: ModelFacts, method: str | None) -> ModelFacts:
    """Raises `Malformed` for a method that is not known or that contradicts the configuration."""
    if method is None:
        return facts
    name = ALIASES.get(method, method)
    if name not in METHODS:
        raise Malformed(
            f"quantization must be one of {', '.join(sorted(METHODS))}, not {method!r}", field="quantization"
        )
    if facts.quantisation is None:
        return replace(facts, quantisation=METHODS[name])
    if facts.quantisation.method not in (name, "mixed"):
        raise Malformed(
            f"Quantization method specified in the model config ({facts.quantisation.method}) does not match the "
            f"quantization method specified in the `quantization` argument ({method}).",
            field="quantization",
        )
    return facts
