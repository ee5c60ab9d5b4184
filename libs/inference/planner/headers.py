"""Exact sizes from the headers of weight files: headers only, never the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from libs.common.errors import Malformed
from libs.inference.planner.fields import Fields, Unsupported

SAFETENSORS_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

GGUF_BLOCKS: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F64": (1, 8),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 40),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q1_0": (128, 18),
}
"""Weights of a block and its bytes. Source: ggml's `ggml-common.h`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as a file holds it."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int


def safetensors_tensors(header: Mapping[str, object]) -> list[StoredTensor]:
    """The tensors of one parsed safetensors header.

    Raises `Malformed` where offsets and shape contradict each other, `Unsupported` for a type that is not known; both
    name the tensor.
    """
    fields = Fields(header)
    return [_safetensor(name, fields) for name in header if name != "__metadata__"]


def _safetensor(name: str, header: Fields) -> StoredTensor:
    described = header.part(name)
    if described is None:
        raise Malformed(f"{name} must be an object, not nothing", field=name)
    kind, shape, offsets = described.text("dtype"), described.counts("shape"), described.counts("data_offsets")
    if kind not in SAFETENSORS_BITS:
        raise Unsupported(f"{name}.dtype: {kind} is not known here", field=f"{name}.dtype")
    size = -(-math.prod(shape) * SAFETENSORS_BITS[kind] // 8)
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        field = f"{name}.data_offsets"
        raise Malformed(f"{field} must span {size} bytes for {list(shape)} of {kind}, not {list(offsets)}", field=field)
    return StoredTensor(name=name, type=kind, shape=shape, size=size)
