"""Reads the header of a GGUF file: what it says of a model, and where and how large each tensor is.

Source of the format: ggml's `docs/gguf.md`, versions 2 and 3. Of long lists (tokens, merges) only the length is kept.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.common.errors import Malformed
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.headers import GGUF_BLOCKS, StoredTensor

MAGIC = b"GGUF"
MOST_FIELDS, MOST_TENSORS, MOST_DIMENSIONS = 10_000, 100_000, 4
LONGEST_HEADER = 64 * 2**20
"""Headers hold the vocabulary: those of 256 thousand tokens have about 10 MiB."""

LONGEST_TEXT, LONGEST_LIST, DEEPEST_LIST = 2**20, 4096, 4

TYPES: Mapping[int, str] = {
    **dict(enumerate(("F32", "F16", "Q4_0", "Q4_1"))),
    **dict(enumerate(("Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), start=6)),
    **dict(enumerate(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"), start=16)),
    **dict(enumerate(("I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16"), start=24)),
    **dict(enumerate(("TQ1_0", "TQ2_0"), start=34)),
    **dict(enumerate(("MXFP4", "NVFP4", "Q1_0"), start=39)),
}
"""Source: ggml's `ggml.h` (`ggml_type`)."""

_SCALARS: Mapping[int, str] = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
MOST_PARTS = 1000
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_TEXT, _LIST = 8, 9
_ALIGNMENT = 32


class HeaderCutOff(Malformed):
    """More of the file is needed: at least `wanted` bytes from its start."""

    def __init__(self, what: str, wanted: int) -> None:
        super().__init__(f"{what} is cut off: its header goes on beyond byte {wanted - 1}", field="model_name")
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class LongList:
    """A list that was passed over."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """`file_bytes` is how large a file with all its tensors is."""

    metadata: Mapping[str, object]
    tensors: tuple[StoredTensor, ...]
    file_bytes: int

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


def parts_of(file: str) -> tuple[str, ...]:
    """All files of a model that is split over several, from the name of any of them, such as q-00001-of-00003.gguf."""
    named = _PART.fullmatch(file)
    if named is None or not 0 < int(named[2]) <= MOST_PARTS:
        return (file,)
    return tuple(f"{named[1]}-{place:05d}-of-{named[2]}.gguf" for place in range(1, int(named[2]) + 1))


def joined(headers: Sequence[GgufHeader]) -> GgufHeader:
    """Of all files of a model: the first says what the model is."""
    return GgufHeader(
        metadata=headers[0].metadata,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        file_bytes=sum(header.file_bytes for header in headers),
    )


def gguf_header(content: bytes, what: str) -> GgufHeader:
    """From the first bytes of a file. Raises `HeaderCutOff` where these are too few, `Malformed` for what is no GGUF
    file or contradicts itself, `Unsupported` for a tensor of a type that is not known; all name the file."""
    return _Reader(content, what).header()


class _Reader:
    def __init__(self, content: bytes, what: str) -> None:
        self._content = content
        self._what = what
        self._place = 0

    def header(self) -> GgufHeader:
        if self._content[: len(MAGIC)] != MAGIC[: len(self._content)]:
            raise self._wrong("it does not begin with GGUF")
        self._bytes(len(MAGIC))
        version = self._scalar("I")
        if version not in (2, 3):
            raise self._wrong(f"its version is {version}; 2 and 3 of little-endian machines are read")
        tensors = self._count("tensors", MOST_TENSORS)
        fields = self._count("fields", MOST_FIELDS)
        metadata: dict[str, object] = {}
        for _ in range(fields):
            name = self._text()
            if name in metadata:
                raise self._wrong(f"{name} is in it twice")
            metadata[name] = self._value(self._scalar("I"))
        return self._with_tensors(metadata, tensors)

    def _with_tensors(self, metadata: Mapping[str, object], count: int) -> GgufHeader:
        found: dict[str, StoredTensor] = {}
        end = 0
        for _ in range(count):
            tensor, offset = self._tensor()
            if tensor.name in found:
                raise self._wrong(f"the tensor {tensor.name} is in it twice")
            found[tensor.name] = tensor
            end = max(end, offset + tensor.size)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment <= 0 or alignment % 8:
            raise self._wrong(f"general.alignment must be a multiple of 8, not {alignment!r}")
        start = -(-self._place // alignment) * alignment
        return GgufHeader(metadata=metadata, tensors=tuple(found.values()), file_bytes=start + end)

    def _tensor(self) -> tuple[StoredTensor, int]:
        name = self._text()
        dimensions = self._scalar("I")
        if dimensions > MOST_DIMENSIONS:
            raise self._wrong(f"the tensor {name} has {dimensions} dimensions, more than {MOST_DIMENSIONS}")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        number, offset = self._scalar("I"), self._scalar("Q")
        kind = TYPES.get(number, "")
        if kind not in GGUF_BLOCKS:
            text = f"{self._what}: the tensor {name[:100]} is of type {number}, not known here"
            raise Unsupported(text, field=name[:100])
        weights, block = GGUF_BLOCKS[kind]
        row = shape[0] if shape else 1
        if row % weights:
            raise self._wrong(f"the tensor {name} has rows of {row} weights, and {kind} blocks of {weights}")
        size = math.prod(shape) // weights * block
        if offset % 8 or offset + size >= 2**63:
            raise self._wrong(f"the tensor {name} would be at byte {offset} with {size} bytes")
        return StoredTensor(name=name, type=kind, shape=shape, size=size), offset

    def _value(self, kind: int, depth: int = 0) -> object:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            return self._list(depth + 1)
        return self._scalar(self._form(kind))

    def _list(self, depth: int) -> object:
        kind, length = self._scalar("I"), self._scalar("Q")
        if depth > DEEPEST_LIST:
            raise self._wrong(f"its lists are nested deeper than {DEEPEST_LIST}")
        if length > LONGEST_HEADER:
            raise self._wrong(f"a list in it would have {length} entries")
        if length > LONGEST_LIST and kind != _LIST:
            self._pass_over(kind, length)
            return LongList(length)
        return tuple(self._value(kind, depth) for _ in range(length))

    def _pass_over(self, kind: int, length: int) -> None:
        if kind != _TEXT:
            self._bytes(struct.calcsize(f"<{self._form(kind)}") * length)
            return
        for _ in range(length):
            self._bytes(self._scalar("Q"))

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._wrong(f"a value in it is of no known type: {kind}")
        return _SCALARS[kind]

    def _count(self, what: str, most: int) -> int:
        found = self._scalar("Q")
        if found > most:
            raise self._wrong(f"it would have {found} {what}, more than {most}")
        return found

    def _text(self) -> str:
        length = self._scalar("Q")
        if length > LONGEST_TEXT:
            raise self._wrong(f"a text in it would have {length} bytes")
        return self._bytes(length).decode(errors="replace")

    def _scalar(self, form: str) -> int:
        """Fractions and truth values come this way too; who reads them asks which they are."""
        found: int = struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]
        return found

    def _bytes(self, length: int) -> bytes:
        end = self._place + length
        if end > LONGEST_HEADER:
            raise self._wrong(f"its header would be longer than {LONGEST_HEADER} bytes")
        if end > len(self._content):
            raise HeaderCutOff(self._what, end)
        found = self._content[self._place : end]
        self._place = end
        return found

    def _wrong(self, why: str) -> Malformed:
        return Malformed(f"{self._what} is no GGUF file that can be read: {why[:300]}", field="model_name")
