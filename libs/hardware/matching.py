"""What a machine must have, as clauses: why a machine does not satisfy a demand. The same clauses decide and explain.

A GPU fits when it satisfies every demand made of a GPU; `min_gpu_count` says how many must fit.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from libs.common.contracts.node_registry import Demands, Gpu, GpuBeat, NodeAnnounced, NodeHeartbeat, Platform, Tier
from libs.common.errors import Malformed
from libs.hardware.tiers import better_or_equal, usable_mb

E = TypeVar("E", bound=StrEnum)

_CAPABILITY = re.compile(r"(\d+)\.(\d+)")


class Machine(Protocol):
    """What its detector told of a machine: what it has, and what of it is free now."""

    @property
    def node_id(self) -> str: ...
    @property
    def announced(self) -> NodeAnnounced: ...
    @property
    def beat(self) -> NodeHeartbeat | None: ...


@dataclass(frozen=True, slots=True)
class Lack:
    """What is missing. `enough` is the value of `field` that this machine would satisfy, where there is one.

    `passing`: it may be there in a moment. `clause`: which one it was, where that is not `field`.
    """

    field: str
    reason: str
    enough: int | None = None
    passing: bool = False
    clause: str | None = None

    def __str__(self) -> str:
        return f"{self.clause or self.field}: {self.reason}"


Clause = Callable[[Machine], Lack | None]
"""What a machine lacks of one demand; None when it satisfies it."""

_GpuDemand = Callable[[Machine, Gpu], Lack | None]


def clauses(asked: Demands) -> tuple[Clause, ...]:
    """One for each demand, the cheap ones first. Raises `Malformed`, naming what is allowed, for unknown names."""
    return (*_about_node(asked), *_about_machine(asked), *_about_gpus(asked))


def named(kind: type[E], field: str, name: str | None) -> E | None:
    """A name in any case. Raises `Malformed`."""
    if name is None:
        return None
    try:
        return kind(name.strip().upper())
    except ValueError:
        allowed = [str(each) for each in kind]
        raise Malformed(f"{field}: {name!r} is none of {', '.join(allowed)}", field=field, allowed=allowed) from None


def free_ram_mb(machine: Machine) -> int | None:
    """By the last heartbeat; before the first, by the announcement."""
    told = machine.beat.memory_available_mb if machine.beat is not None else None
    return told if told is not None else machine.announced.inventory.memory.available_mb


def free_vram_mb(machine: Machine, gpu: Gpu) -> int | None:
    """By the last heartbeat; before the first, by the announcement."""
    if gpu.unified_memory and gpu.vram_total_mb is None:
        return free_ram_mb(machine)
    beat = _beat_of(machine, gpu)
    return beat.vram_free_mb if beat is not None else gpu.vram_free_mb


def gpu_works(machine: Machine, gpu: Gpu) -> bool:
    beat = _beat_of(machine, gpu)
    return beat.healthy if beat is not None else gpu.healthy


def at_least(field: str, has: int | None, wanted: int, whose: str = "it", *, passing: bool = False) -> Lack | None:
    """What is not known does not satisfy a demand above zero."""
    if (has or 0) >= wanted:
        return None
    reason = f"{whose} has {'an unknown amount' if has is None else has}, not {wanted}"
    return Lack(field, reason, has, passing)


def _beat_of(machine: Machine, gpu: Gpu) -> GpuBeat | None:
    """Heartbeats name GPUs in the order of the announcement, unless something happened in between."""
    told = machine.beat.gpus if machine.beat is not None else ()
    if gpu.index < len(told) and told[gpu.index].uuid == gpu.uuid:
        return told[gpu.index]
    return next((each for each in told if each.uuid == gpu.uuid), None)


def _about_node(asked: Demands) -> Iterator[Clause]:
    if asked.node_ids is not None:
        yield partial(_is_among, frozenset(asked.node_ids))
    if (tier := named(Tier, "tier", asked.tier)) is not None:
        yield partial(_has_tier, tier)
    if (least := named(Tier, "min_tier", asked.min_tier)) is not None:
        yield partial(_has_tier_or_better, least)
    for label, value in asked.labels.items():
        yield partial(_has_label, label, value)


def _about_machine(asked: Demands) -> Iterator[Clause]:
    if (platform := named(Platform, "platform", asked.platform)) is not None:
        yield partial(_has_platform, platform)
    if (ram := asked.min_ram_mb) is not None:
        yield lambda machine: at_least("min_ram_mb", machine.announced.inventory.memory.total_mb, ram)
    if (threads := asked.min_cpu_threads) is not None:
        yield lambda machine: at_least("min_cpu_threads", machine.announced.inventory.cpu.threads, threads)


def _about_gpus(asked: Demands) -> Iterator[Clause]:
    if (total := asked.min_total_vram_mb) is not None:
        yield partial(_has_vram, total)
    demands = tuple(_about_one_gpu(asked))
    if demands or asked.requires_gpu or asked.min_gpu_count:
        yield partial(_has_gpus, demands, max(1, asked.min_gpu_count or 0))


def _about_one_gpu(asked: Demands) -> Iterator[_GpuDemand]:
    if (name := asked.gpu_model) is not None:
        yield partial(_is_model, name.lower())
    if (capability := asked.compute_capability) is not None:
        yield partial(_is_capable, capability)
    if (size := asked.min_vram_mb_per_gpu) is not None:
        yield lambda machine, gpu: at_least("min_vram_mb_per_gpu", _usable(machine, gpu), size, gpu.name)
    if (free := asked.min_free_vram_mb) is not None:
        yield lambda machine, gpu: at_least(
            "min_free_vram_mb", free_vram_mb(machine, gpu), free, gpu.name, passing=(_usable(machine, gpu) or 0) >= free
        )


def _is_among(names: frozenset[str], machine: Machine) -> Lack | None:
    return None if machine.node_id in names else Lack("node_ids", "it is not among them")


def _has_tier(wanted: Tier, machine: Machine) -> Lack | None:
    tier = machine.announced.tier
    return None if tier is wanted else Lack("tier", f"it is {tier}, not {wanted}")


def _has_tier_or_better(least: Tier, machine: Machine) -> Lack | None:
    tier = machine.announced.tier
    return None if better_or_equal(tier, least) else Lack("min_tier", f"it is {tier}, less than {least}")


def _has_label(label: str, value: str, machine: Machine) -> Lack | None:
    has = machine.announced.labels.get(label)
    if has == value:
        return None
    return Lack("labels", f"{label} is {'not set' if has is None else has}, not {value}")


def _has_platform(platform: Platform, machine: Machine) -> Lack | None:
    has = machine.announced.inventory.platform
    return None if has is platform else Lack("platform", f"it is {has}, not {platform}")


def _has_vram(wanted: int, machine: Machine) -> Lack | None:
    total = sum(_usable(machine, gpu) or 0 for gpu in machine.announced.inventory.gpus if gpu_works(machine, gpu))
    return at_least("min_total_vram_mb", total, wanted, "its GPUs together")


def _is_model(name: str, machine: Machine, gpu: Gpu) -> Lack | None:
    return None if name in gpu.name.lower() else Lack("gpu_model", f"it is {gpu.name}")


def _is_capable(wanted: str, machine: Machine, gpu: Gpu) -> Lack | None:
    if _capable(gpu.compute_capability, wanted):
        return None
    return Lack("compute_capability", f"{gpu.name} has {gpu.compute_capability or 'an unknown one'}")


def _has_gpus(demands: Sequence[_GpuDemand], needed: int, machine: Machine) -> Lack | None:
    """Looks no further once enough GPUs fit."""
    fit = 0
    for gpu in machine.announced.inventory.gpus:
        if gpu_works(machine, gpu) and _fits(demands, machine, gpu):
            fit += 1
            if fit >= needed:
                return None
    return _too_few_gpus(demands, fit, needed, machine)


def _fits(demands: Sequence[_GpuDemand], machine: Machine, gpu: Gpu) -> bool:
    for demand in demands:  # noqa: SIM110  # runs for every machine: a generator would take twice as long
        if demand(machine, gpu) is not None:
            return False
    return True


def _too_few_gpus(demands: Sequence[_GpuDemand], fit: int, needed: int, machine: Machine) -> Lack:
    working = [gpu for gpu in machine.announced.inventory.gpus if gpu_works(machine, gpu)]
    if not working:
        return Lack("requires_gpu", "it has no GPU that works")
    lacks = [[lack for demand in demands if (lack := demand(machine, gpu)) is not None] for gpu in working]
    words = dict.fromkeys(str(lack) for found in lacks for lack in found)
    why = f" ({'; '.join(words)})" if words else ""
    reason = f"{fit} of its {len(working)} GPUs fit, not {needed}{why}"
    if len(working) < needed:
        return Lack("min_gpu_count", reason, len(working))
    nearest = sorted((found for found in lacks if found), key=_distance)[needed - fit - 1]
    passing = all(lack.passing for lack in nearest)
    field, enough = (nearest[0].field, nearest[0].enough) if len(nearest) == 1 else ("min_gpu_count", fit or None)
    return Lack(field, reason, enough, passing, "min_gpu_count")


def _distance(found: Sequence[Lack]) -> tuple[int, int]:
    """How far a GPU is from fitting: by how many demands, then by the amount that is there."""
    return len(found), -(found[0].enough or 0)


def _usable(machine: Machine, gpu: Gpu) -> int | None:
    return usable_mb(gpu, machine.announced.inventory.memory.total_mb)


def _capable(has: str | None, wanted: str) -> bool:
    has_numbers, wanted_numbers = _CAPABILITY.fullmatch(has or ""), _CAPABILITY.fullmatch(wanted)
    if has_numbers is None or wanted_numbers is None:
        return has == wanted
    return tuple(map(int, has_numbers.groups())) >= tuple(map(int, wanted_numbers.groups()))
