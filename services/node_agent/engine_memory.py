"""How much RAM an engine of llama.cpp takes: its file, its context, and what it computes in.

Source: ggml's description of the GGUF format, and llama.cpp's `llama-kv-cache.cpp`: for each layer and token, keys and
values of `head_count_kv` heads in 16 bits. Layers that keep only a window of the context are counted in full.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from libs.common.contracts.gpu_orchestrator import MOST_MB

MIB = 2**20
WORKING_MB = 192
"""Python, the engine's code and its buffers, without those of its last layer."""
BATCH_TOKENS = 512
FLOAT_BYTES, HALF_BYTES = 4, 2
MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
VOCABULARY = "tokenizer.ggml.tokens"

Value = int | float | bool | str | tuple[int | float | bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a model. `kv_bytes`: of one token's keys and values in all layers."""

    kv_bytes: int
    vocabulary: int


def engine_ram_mb(file_bytes: int, shape: Shape | None, tokens: int) -> int:
    """MiB for a model file and `tokens` of context in all slots together. Without a shape: the file twice."""
    context = file_bytes if shape is None else tokens * shape.kv_bytes
    logits = 0 if shape is None else BATCH_TOKENS * shape.vocabulary * FLOAT_BYTES
    return min(MOST_MB, WORKING_MB - (file_bytes + context + logits) // -MIB)


def shape_of(file: memoryview) -> Shape | None:
    """From the beginning of a GGUF file; None where it does not say."""
    try:
        found, vocabulary = _described(file)
        name = str(found["general.architecture"])
        layers = _number(found[f"{name}.block_count"])
        heads = found[f"{name}.attention.head_count"]
        width = _number(found[f"{name}.embedding_length"])
        each = width // max(1, _total(heads, layers) // layers)
        keys = _number(found.get(f"{name}.attention.key_length", each))
        values = _number(found.get(f"{name}.attention.value_length", each))
        kv_heads = _total(found.get(f"{name}.attention.head_count_kv", heads), layers)
        kv_bytes = kv_heads * (keys + values) * HALF_BYTES
        return Shape(kv_bytes=kv_bytes, vocabulary=vocabulary) if kv_bytes >= 0 else None
    except (KeyError, TypeError, ValueError, ArithmeticError, struct.error):
        return None


def _total(heads: Value, layers: int) -> int:
    """Of all layers: written once for all of them, or for each."""
    return sum(int(each) for each in heads) if isinstance(heads, tuple) else _number(heads) * layers


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _described(file: memoryview) -> tuple[Mapping[str, Value], int]:
    """What the header says, without lists of words; of the vocabulary its size."""
    magic, version, _, count = struct.unpack_from("<4sIQQ", file)
    if magic != MAGIC or version < 2:
        raise ValueError("not a GGUF file that is known here")
    found: dict[str, Value] = {}
    vocabulary, place = 0, struct.calcsize("<4sIQQ")
    for _ in range(count):
        name, place = _text(file, place)
        (kind,) = struct.unpack_from("<I", file, place)
        place += 4
        if kind == ARRAY:
            part, size = struct.unpack_from("<IQ", file, place)
            vocabulary = size if name == VOCABULARY else vocabulary
            told, place = _array(file, place + 12, part, size)
        elif kind == STRING:
            told, place = _text(file, place)
        else:
            told = struct.unpack_from(f"<{SCALARS[kind]}", file, place)[0]
            place += struct.calcsize(f"<{SCALARS[kind]}")
        found[name] = told
    return found, vocabulary


def _array(file: memoryview, place: int, kind: int, size: int) -> tuple[Value, int]:
    if kind == STRING:
        for _ in range(size):
            (length,) = struct.unpack_from("<Q", file, place)
            place += 8 + length
        return (), place
    form = f"<{size}{SCALARS[kind]}"
    return struct.unpack_from(form, file, place), place + struct.calcsize(form)


def _text(file: memoryview, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", file, place)
    if place + 8 + length > len(file):
        raise ValueError("a text goes beyond the end of the file")
    return bytes(file[place + 8 : place + 8 + length]).decode(errors="replace"), place + 8 + length
