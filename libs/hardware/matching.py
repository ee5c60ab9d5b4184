"""What a machine must have, as clauses: why a machine does not satisfy a demand. The same clauses decide and explain.

A GPU fits when it satisfies every demand made of a GPU; `min_gpu_count` says how many must fit.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Generic, TypeVar

from libs.common.contracts.node_registry import Demands, Platform, Tier
from libs.common.errors import Malformed
from libs.hardware.facts import GpuFacts, MachineFacts
from libs.hardware.tiers import ORDER

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

_CAPABILITY = re.compile(r"(\d+)\.(\d+)")
_CAPABILITIES_KNOWN = 1024


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


@dataclass(frozen=True, slots=True)
class Judgement(Generic[T]):
    """One demand. `lack` is asked only where it does not hold: words cost more than the judgement."""

    holds: Callable[[T], bool]
    lack: Callable[[T], Lack]

    def __call__(self, one: T) -> Lack | None:
        """What it lacks; None when it satisfies the demand."""
        return None if self.holds(one) else self.lack(one)


Clause = Judgement[MachineFacts]
_GpuDemand = Judgement[GpuFacts]


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


def at_least(field: str, has: int | None, wanted: int, whose: str = "it", *, passing: bool = False) -> Lack | None:
    """What is not known does not satisfy a demand above zero."""
    return None if (has or 0) >= wanted else _too_little(field, has, wanted, whose, passing=passing)


def _too_little(field: str, has: int | None, wanted: int, whose: str = "it", *, passing: bool = False) -> Lack:
    reason = f"{whose} has {'an unknown amount' if has is None else has}, not {wanted}"
    return Lack(field, reason, has, passing)


def _about_node(asked: Demands) -> Iterator[Clause]:
    if asked.node_ids is not None:
        names = frozenset(asked.node_ids)
        yield Judgement(lambda node: node.node_id in names, lambda _: Lack("node_ids", "it is not among them"))
    if (tier := named(Tier, "tier", asked.tier)) is not None:
        yield Judgement(lambda node: node.tier is tier, lambda node: Lack("tier", f"it is {node.tier}, not {tier}"))
    if (least := named(Tier, "min_tier", asked.min_tier)) is not None:
        good = ORDER[: ORDER.index(least) + 1]  # a tuple: a word of an enumeration is slow to hash
        yield Judgement(
            lambda node: node.tier in good, lambda node: Lack("min_tier", f"it is {node.tier}, less than {least}")
        )
    for label, value in asked.labels.items():
        yield _label(label, value)


def _label(label: str, value: str) -> Clause:
    def lack(node: MachineFacts) -> Lack:
        has = node.labels.get(label)
        return Lack("labels", f"{label} is {'not set' if has is None else has}, not {value}")

    return Judgement(lambda node: node.labels.get(label) == value, lack)


def _about_machine(asked: Demands) -> Iterator[Clause]:
    if (platform := named(Platform, "platform", asked.platform)) is not None:
        yield Judgement(
            lambda node: node.platform is platform,
            lambda node: Lack("platform", f"it is {node.platform}, not {platform}"),
        )
    if (ram := asked.min_ram_mb) is not None:
        yield Judgement(
            lambda node: (node.ram_total_mb or 0) >= ram, lambda node: _too_little("min_ram_mb", node.ram_total_mb, ram)
        )
    if (threads := asked.min_cpu_threads) is not None:
        yield Judgement(
            lambda node: (node.threads or 0) >= threads,
            lambda node: _too_little("min_cpu_threads", node.threads, threads),
        )


def _about_gpus(asked: Demands) -> Iterator[Clause]:
    if (total := asked.min_total_vram_mb) is not None:
        yield Judgement(
            lambda node: _usable_vram(node) >= total,
            lambda node: _too_little("min_total_vram_mb", _usable_vram(node), total, "its GPUs together"),
        )
    demands = tuple(_about_one_gpu(asked))
    if demands or asked.requires_gpu or asked.min_gpu_count:
        yield _enough_gpus(demands, max(1, asked.min_gpu_count or 0))


def _about_one_gpu(asked: Demands) -> Iterator[_GpuDemand]:
    if (part := asked.gpu_model) is not None:
        name = part.lower()
        yield Judgement(lambda gpu: name in gpu.name.lower(), lambda gpu: Lack("gpu_model", f"it is {gpu.name}"))
    if (wanted := asked.compute_capability) is not None:
        yield Judgement(
            lambda gpu: _capable(gpu.compute_capability, wanted),
            lambda gpu: Lack("compute_capability", f"{gpu.name} has {gpu.compute_capability or 'an unknown one'}"),
        )
    if (size := asked.min_vram_mb_per_gpu) is not None:
        yield Judgement(
            lambda gpu: (gpu.usable_mb or 0) >= size,
            lambda gpu: _too_little("min_vram_mb_per_gpu", gpu.usable_mb, size, gpu.name),
        )
    if (free := asked.min_free_vram_mb) is not None:
        yield Judgement(
            lambda gpu: (gpu.free_mb or 0) >= free,
            lambda gpu: _too_little(
                "min_free_vram_mb", gpu.free_mb, free, gpu.name, passing=(gpu.usable_mb or 0) >= free
            ),
        )


def _enough_gpus(demands: Sequence[_GpuDemand], needed: int) -> Clause:
    fits = _every([demand.holds for demand in demands])

    def holds(node: MachineFacts) -> bool:
        """Looks no further once enough GPUs fit."""
        fit = 0
        for gpu in node.gpus:
            if gpu.works and fits(gpu):
                fit += 1
                if fit >= needed:
                    return True
        return False

    return Judgement(holds, lambda node: _too_few_gpus(demands, needed, node))


def _every(judgements: Sequence[Callable[[GpuFacts], bool]]) -> Callable[[GpuFacts], bool]:
    """One demand, as most queries have it, is asked without a detour: it runs for every GPU of every machine."""
    if len(judgements) == 1:
        return judgements[0]
    return lambda gpu: all(holds(gpu) for holds in judgements)


def _too_few_gpus(demands: Sequence[_GpuDemand], needed: int, node: MachineFacts) -> Lack:
    working = [gpu for gpu in node.gpus if gpu.works]
    if not working:
        return Lack("requires_gpu", "it has no GPU that works")
    lacks = [[lack for demand in demands if (lack := demand(gpu)) is not None] for gpu in working]
    fit = sum(not found for found in lacks)
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


def _usable_vram(node: MachineFacts) -> int:
    return sum(gpu.usable_mb or 0 for gpu in node.gpus if gpu.works)


def _capable(has: str | None, wanted: str) -> bool:
    has_numbers, wanted_numbers = _numbers(has or ""), _numbers(wanted)
    if has_numbers is None or wanted_numbers is None:
        return has == wanted
    return has_numbers >= wanted_numbers


@lru_cache(_CAPABILITIES_KNOWN)
def _numbers(capability: str) -> tuple[int, int] | None:
    found = _CAPABILITY.fullmatch(capability)
    return None if found is None else (int(found[1]), int(found[2]))
