"""Reads the bytes of a model's documents."""

import json
import re
import struct
from collections.abc import Mapping

from libs.common.errors import Malformed
from libs.inference.planner.gguf import LONGEST_HEADER as LONGEST_GGUF_HEADER
from libs.inference.planner.gguf import HeaderCutOff

LARGEST_DOCUMENT = 64 * 2**20
"""The most bytes that are read of a document about a model."""

HEADER_LENGTH = 8
LONGEST_HEADER = 100_000_000
"""The most bytes of a safetensors header. Source: the format's own limit."""

FIRST_GGUF_BYTES = 2**20
"""Read of every GGUF file: enough for most of those with a small vocabulary."""

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/ -]{0,250}\.gguf")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


def checked_name(model_name: str) -> str:
    """A name as hubs have them. Raises `Malformed` for one with spaces, more than one slash or other signs."""
    if not _NAME.fullmatch(model_name) or ".." in model_name or "--" in model_name:
        raise Malformed(
            f"model_name must be like owner/name, of letters, digits, '.', '_' and '-', not {model_name!r}",
            field="model_name",
        )
    return model_name


def checked_revision(revision: str | None) -> str:
    """`main` where none is named. Raises `Malformed` for one that would lead out of its folder."""
    if revision is not None and (".." in revision or revision.startswith("/")):
        raise Malformed(f"revision must be a branch, a tag or a commit, not {revision!r}", field="revision")
    return revision or "main"


def json_object(content: bytes, what: str) -> Mapping[str, object]:
    """Raises `Malformed`, naming the document."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {str(error)[:120]}", field="model_name") from None
    if not isinstance(found, dict):
        raise Malformed(f"{what} must be a JSON object, not {type(found).__name__}", field="model_name")
    return found


def header_length(start: bytes, what: str) -> int:
    """How long the header of a safetensors file is, from its first eight bytes. Raises `Malformed`."""
    if len(start) < HEADER_LENGTH:
        raise Malformed(f"{what} is too short for a safetensors file", field="model_name")
    length = int(struct.unpack("<Q", start[:HEADER_LENGTH])[0])
    if length > LONGEST_HEADER:
        raise Malformed(f"{what} is no safetensors file: its header would have {length} bytes", field="model_name")
    return length


def more_of_header(cut_off: HeaderCutOff) -> int:
    """How many bytes of a GGUF file to have next: a few reads suffice, whatever the header's length."""
    return min(LONGEST_GGUF_HEADER, max(4 * FIRST_GGUF_BYTES, 2 * cut_off.wanted))


def checked_gguf(file: str) -> str:
    """A file's name, or a path inside a model's folder. Raises `Malformed`."""
    if not _FILE.fullmatch(file) or ".." in file:
        raise Malformed(f"gguf_file must be like model-Q4_K_M.gguf, not {file!r}", field="gguf_file")
    return file


def weight_files(index: Mapping[str, object]) -> tuple[str, ...]:
    """The files that an index names, each once. Names that lead elsewhere are left out."""
    names = index.get("weight_map")
    if not isinstance(names, dict):
        return ()
    plain = (name for name in names.values() if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9._-]+", name))
    return tuple(dict.fromkeys(plain))
