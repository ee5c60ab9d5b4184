"""What a source said, with what it could not say."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from libs.common.contracts.node_registry import Problem

T = TypeVar("T")

MIB = 1024 * 1024
_PART_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    value: T
    problems: tuple[Problem, ...] = ()


def problem(source: str, error: BaseException | str) -> Problem:
    """A problem in words: an exception that has none is told by its name."""
    if isinstance(error, str):
        return Problem(source=source, message=error)
    return Problem(source=source, message=str(error) or type(error).__name__)


def mib(amount: int | float | None) -> int | None:
    """Bytes to whole MiB, rounded down; what is unknown stays unknown."""
    return None if amount is None else int(amount) // MIB


def text(path: Path | str) -> str | None:
    """The content of a small file of the kernel; None when it is not there or cannot be read.

    Read without Python's file objects: hundreds of these files are read each second, and most of the time went there.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(file, _PART_BYTES):
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(file)
    return b"".join(parts).decode(errors="replace").strip()


def number(path: Path | str) -> int | None:
    """The whole number in a small file of the kernel (hexadecimal with `0x`); None when there is none."""
    content = text(path)
    try:
        return None if content is None else int(content, 0)
    except ValueError:
        return None
