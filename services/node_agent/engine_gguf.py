"""How much RAM llama.cpp takes with a model, from its file on disk: as the planner reckons it."""

from pathlib import Path

from libs.common.errors import Malformed, Unavailable
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.gguf import LONGEST_HEADER, GgufHeader, HeaderCutOff, gguf_header, joined, parts_of
from libs.inference.planner.llama import MIB, PROGRAM_BYTES, gguf_facts, llama_need

FIRST_BYTES = 2**20


def ram_mb_of(path: Path, *, slots: int, context: int) -> int:
    """MiB with so many tokens in each slot; for a file whose header does not tell, twice its size and the program.

    Raises `Unavailable` when it cannot be read.
    """
    parts = [path.with_name(name) for name in parts_of(path.name)]
    try:
        size = sum(part.stat().st_size for part in parts)
        try:
            facts = gguf_facts(joined([_header(part) for part in parts]))
            taken = llama_need(facts, context=context, slots=slots).total
        except (Malformed, Unsupported):
            taken = 2 * size + PROGRAM_BYTES
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    return -(-taken // MIB)


def _header(path: Path) -> GgufHeader:
    content = b""
    with path.open("rb") as file:
        while True:
            more = file.read(max(FIRST_BYTES, len(content)))
            content += more
            try:
                return gguf_header(content, path.name)
            except HeaderCutOff:
                if not more or len(content) >= LONGEST_HEADER:
                    raise
