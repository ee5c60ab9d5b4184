"""The nouns: who this machine is, and its pulse."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from libs.common.contracts.base import Message
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


class Topology(Message):
    """Matrices with a row and a column for each of `gpus` (UUIDs), in that order."""

    gpus: tuple[str, ...]
    paths: tuple[tuple[str | None, ...], ...] = Field(
        description="PIX, PXB, PHB, NODE or SYS: what lies between them on the PCI bus, near to far"
    )
    nvlinks: tuple[tuple[int | None, ...], ...] = Field(description="direct, or to the switch that they share")
    peer_access: tuple[tuple[bool | None, ...], ...] = Field(description="over NVLink")
