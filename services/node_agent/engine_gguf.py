"""How much RAM a model takes, from its file on disk."""

import mmap
from pathlib import Path

from libs.common.errors import Unavailable
from services.node_agent.engine_memory import engine_ram_mb, shape_of


def ram_mb_of(path: Path, tokens: int) -> int:
    """MiB for the model and so much context in all slots together. Raises `Unavailable` when it cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            view = memoryview(content)
            try:
                return engine_ram_mb(len(view), shape_of(view), tokens)
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
