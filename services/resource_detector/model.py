"""The nouns: who this machine is, and its pulse."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.common.contracts.node_registry import Gpu, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this machine is, by its settings. `tier` is its owner's word, which counts more than what is measured."""

    node_id: str
    boot_id: str
    heartbeat_seconds: float
    labels: Mapping[str, str]
    tier: Tier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What changes all the time."""

    load_ratio: float | None
    memory_available_mb: int | None
    gpus: tuple[Gpu, ...]
