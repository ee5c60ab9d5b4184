"""Exact sizes from the headers of weight files: safetensors and GGUF. Headers only, never the weights."""

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
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "MXFP4": (32, 17),
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


def gguf_tensors(header: Mapping[str, object]) -> list[StoredTensor]:
    """The tensors of a parsed GGUF header: from a tensor's name to its `type` (as GGUF names it) and `shape`."""
    fields = Fields(header)
    return [_gguf_tensor(name, fields) for name in header]


def _gguf_tensor(name: str, header: Fields) -> StoredTensor:
    described = header.part(name)
    if described is None:
        raise Malformed(f"{name} must be an object, not nothing", field=name)
    kind, shape = described.text("type"), described.counts("shape")
    if kind not in GGUF_BLOCKS:
        raise Unsupported(f"{name}.type: {kind} is not known here", field=f"{name}.type")
    weights, block = GGUF_BLOCKS[kind]
    count = math.prod(shape)
    if count % weights:
        field = f"{name}.shape"
        raise Malformed(f"{field} must hold blocks of {weights} weights, not {list(shape)}", field=field)
    return StoredTensor(name=name, type=kind, shape=shape, size=count // weights * block)
