"""What is asked of a machine, read once from what its detector told instead of at every question. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from libs.common.contracts.node_registry import Gpu, GpuBeat, NodeAnnounced, NodeHeartbeat, Platform, Tier
from libs.hardware.tiers import usable_mb


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """A GPU. `usable_mb`: what one program can have of it at most; `shares_ram`: its memory is the processor's."""

    uuid: str
    name: str
    compute_capability: str | None
    usable_mb: int | None
    free_mb: int | None
    works: bool
    shares_ram: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """A machine. What is free is by its last word, an announcement or a heartbeat."""

    node_id: str
    tier: Tier
    labels: Mapping[str, str]
    platform: Platform
    threads: int | None
    ram_total_mb: int | None
    ram_free_mb: int | None
    gpus: tuple[GpuFacts, ...]
    most_free_vram_mb: int | None


def announced(told: NodeAnnounced) -> MachineFacts:
    machine = told.inventory
    gpus = tuple(_gpu(gpu, machine.memory.total_mb, machine.memory.available_mb) for gpu in machine.gpus)
    return MachineFacts(
        node_id=told.node_id,
        tier=told.tier,
        labels=told.labels,
        platform=machine.platform,
        threads=machine.cpu.threads,
        ram_total_mb=machine.memory.total_mb,
        ram_free_mb=machine.memory.available_mb,
        gpus=gpus,
        most_free_vram_mb=_most_free(gpus),
    )


def beating(known: MachineFacts, beat: NodeHeartbeat) -> MachineFacts:
    """What was announced, and what a heartbeat after it said."""
    ram = beat.memory_available_mb if beat.memory_available_mb is not None else known.ram_free_mb
    gpus = tuple(
        gpu if now is None else _beating(gpu, now, ram)
        for gpu, now in zip(known.gpus, _in_order(known.gpus, beat.gpus), strict=True)
    )
    return replace(known, ram_free_mb=ram, gpus=gpus, most_free_vram_mb=_most_free(gpus))


def _gpu(gpu: Gpu, ram_total_mb: int | None, ram_free_mb: int | None) -> GpuFacts:
    shares_ram = gpu.unified_memory and gpu.vram_total_mb is None
    return GpuFacts(
        uuid=gpu.uuid,
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        usable_mb=usable_mb(gpu, ram_total_mb),
        free_mb=ram_free_mb if shares_ram else gpu.vram_free_mb,
        works=gpu.healthy,
        shares_ram=shares_ram,
    )


def _beating(gpu: GpuFacts, now: GpuBeat, ram_free_mb: int | None) -> GpuFacts:
    return replace(gpu, free_mb=ram_free_mb if gpu.shares_ram else now.vram_free_mb, works=now.healthy)


def _in_order(gpus: Sequence[GpuFacts], beats: Sequence[GpuBeat]) -> Sequence[GpuBeat | None]:
    """Heartbeats name GPUs in the order of the announcement, unless something happened in between."""
    if len(gpus) == len(beats) and all(gpu.uuid == beat.uuid for gpu, beat in zip(gpus, beats, strict=True)):
        return beats
    told = {beat.uuid: beat for beat in beats}
    return [told.get(gpu.uuid) for gpu in gpus]


def _most_free(gpus: Sequence[GpuFacts]) -> int | None:
    return max((gpu.free_mb for gpu in gpus if gpu.free_mb is not None), default=None)
