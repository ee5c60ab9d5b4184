"""Engines as they are wanted, and as they tell of themselves. Shared with the engine's own process, so kept light."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

DeviceChoice = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The engine that is wanted. `model_version` changes when the file does, `build` when the engine's code does."""

    engine_id: str
    model_path: str
    model_version: str
    model_name: str
    test_model: bool
    threads: int
    slots: int
    context_tokens: int
    embeddings: bool
    device: DeviceChoice
    build: str

    def fingerprint(self) -> str:
        """Equal for two specs that the same engine process would serve."""
        return sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device the engine's code can compute on, as it names it."""

    name: str
    description: str
    is_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What the engine's process tells of itself, in a file: who it is while it loads, where it listens afterwards.

    `claim` is what its agent called the memory that was reserved for it.
    """

    pid: int
    fingerprint: str
    command: tuple[str, ...]
    started_at: str
    url: str | None = None
    device: str = ""
    device_reason: str = ""
    problem: str | None = None
    claim: str = ""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "EngineReport":
        """Raises `KeyError`, `TypeError` or `ValueError` for what no engine of ours wrote."""
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**(known | {"pid": int(found["pid"]), "command": tuple(map(str, found["command"]))}))
