"""Which nodes match a query, and why the others do not."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from libs.common.contracts.node_registry import EngineState, Gpu, GpuBeat, NodeQuery, NodeState, Platform, Tier
from libs.common.errors import Malformed
from libs.hardware.tiers import ORDER, usable_mb
from services.node_registry.model import Node

E = TypeVar("E", bound=StrEnum)

_CAPABILITY = re.compile(r"(\d+)\.(\d+)")


Clause = Callable[[Node], str | None]
"""Why a node does not satisfy one demand; None when it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query that has been read: what it demands, one clause for each demand, the cheap ones first."""

    clauses: tuple[Clause, ...]
    order: "Order"


@dataclass(frozen=True, slots=True)
class Order:
    """How found nodes are ordered; what is not known comes last."""

    key: Callable[[Node], float | None] | None
    downwards: bool

    @property
    def by_id(self) -> bool:
        return self.key is None and not self.downwards

    def sorted(self, nodes: Sequence[Node]) -> list[Node]:
        by_id = sorted(nodes, key=lambda node: node.node_id, reverse=self.key is None and self.downwards)
        key = self.key
        if key is None:
            return by_id
        valued = [(key(node), node) for node in by_id]
        known = [(value, node) for value, node in valued if value is not None]
        unknown = [node for value, node in valued if value is None]
        return [node for _, node in sorted(known, key=lambda pair: pair[0], reverse=self.downwards)] + unknown


def read(query: NodeQuery) -> Wanted:
    """Raises `Malformed`, naming what is allowed, for a name that does not exist."""
    order = query.sort.strip().lower()
    word = order.removeprefix("-")
    if word not in _ORDERS:
        raise Malformed(f"sort: {query.sort!r} is none of {', '.join(_ORDERS)}", field="sort", allowed=list(_ORDERS))
    if query.after is not None and order != "node_id":
        raise Malformed("after: pages are told only in the order of node_id, without `sort`", field="after")
    return Wanted(
        clauses=(*_about_node(query), *_about_machine(query), *_about_gpus(query)),
        order=Order(_ORDERS[word], order.startswith("-")),
    )


def matches(node: Node, wanted: Wanted) -> bool:
    for clause in wanted.clauses:  # noqa: SIM110  # runs for every node: a generator would take twice as long
        if clause(node) is not None:
            return False
    return True


def refusals(node: Node, wanted: Wanted) -> list[str]:
    """Why this node does not match, one sentence for each clause; none when it does."""
    return [reason for clause in wanted.clauses if (reason := clause(node)) is not None]


def free_vram_mb(node: Node, gpu: Gpu) -> int | None:
    """By the last heartbeat; before the first, by the announcement."""
    if gpu.unified_memory and gpu.vram_total_mb is None:
        return free_ram_mb(node)
    beat = _beat_of(node, gpu)
    return beat.vram_free_mb if beat is not None else gpu.vram_free_mb


def gpu_works(node: Node, gpu: Gpu) -> bool:
    beat = _beat_of(node, gpu)
    return beat.healthy if beat is not None else gpu.healthy


def _beat_of(node: Node, gpu: Gpu) -> GpuBeat | None:
    """Heartbeats name GPUs in the order of the announcement, unless something happened in between."""
    told = node.beat.gpus if node.beat is not None else ()
    if gpu.index < len(told) and told[gpu.index].uuid == gpu.uuid:
        return told[gpu.index]
    return next((each for each in told if each.uuid == gpu.uuid), None)


def free_ram_mb(node: Node) -> int | None:
    told = node.beat.memory_available_mb if node.beat is not None else None
    return told if told is not None else node.announced.inventory.memory.available_mb


def _about_node(query: NodeQuery) -> Iterator[Clause]:
    if query.node_ids is not None:
        among = frozenset(query.node_ids)
        yield lambda node: None if node.node_id in among else "node_ids: it is not among them"
    if query.online_only:
        yield _is_online
    if (states := _states(query.states)) is not None:
        yield lambda node: None if node.life.state in states else f"states: it is {node.life.state}"
    if (draining := query.draining) is not None:
        yield (
            lambda node: (
                None if node.draining is draining else f"draining: it is {'' if node.draining else 'not '}draining"
            )
        )
    if (tier := named(Tier, "tier", query.tier)) is not None:
        yield lambda node: None if node.announced.tier is tier else f"tier: it is {node.announced.tier}, not {tier}"
    if (least := named(Tier, "min_tier", query.min_tier)) is not None:
        yield partial(_has_tier, least, ORDER[: ORDER.index(least) + 1])
    for label, value in query.labels.items():
        yield partial(_has_label, label, value)
    if query.model_name is not None:
        yield partial(_has_model, query.model_name)


def _about_machine(query: NodeQuery) -> Iterator[Clause]:
    if (platform := named(Platform, "platform", query.platform)) is not None:
        yield partial(_has_platform, platform)
    if (ram := query.min_ram_mb) is not None:
        yield lambda node: _at_least("min_ram_mb", node.announced.inventory.memory.total_mb, ram)
    if (threads := query.min_cpu_threads) is not None:
        yield lambda node: _at_least("min_cpu_threads", node.announced.inventory.cpu.threads, threads)


def _about_gpus(query: NodeQuery) -> Iterator[Clause]:
    """A GPU fits when it satisfies every demand made of a GPU; `min_gpu_count` says how many must fit."""
    if (total := query.min_total_vram_mb) is not None:
        yield partial(_has_vram, total)
    demands = tuple(_about_one_gpu(query))
    if demands or query.requires_gpu or query.min_gpu_count:
        yield partial(_has_gpus, demands, max(1, query.min_gpu_count or 0))


Demand = Callable[[Node, Gpu], str | None]


def _about_one_gpu(query: NodeQuery) -> Iterator[Demand]:
    if (name := query.gpu_model) is not None:
        yield lambda _, gpu: None if name.lower() in gpu.name.lower() else f"gpu_model: it is {gpu.name}"
    if (capability := query.compute_capability) is not None:
        yield (
            lambda _, gpu: (
                None
                if _capable(gpu.compute_capability, capability)
                else f"compute_capability: {gpu.name} has {gpu.compute_capability or 'an unknown one'}"
            )
        )
    if (size := query.min_vram_mb_per_gpu) is not None:
        yield lambda node, gpu: _at_least("min_vram_mb_per_gpu", _usable(node, gpu), size, gpu.name)
    if (free := query.min_free_vram_mb) is not None:
        yield lambda node, gpu: _at_least("min_free_vram_mb", free_vram_mb(node, gpu), free, gpu.name)


def _is_online(node: Node) -> str | None:
    if node.life.state is NodeState.ONLINE:
        return None
    return f"online_only: it is {node.life.state} ({node.life.reason})"


def _has_tier(least: Tier, good: Sequence[Tier], node: Node) -> str | None:
    tier = node.announced.tier
    return None if tier in good else f"min_tier: it is {tier}, less than {least}"


def _has_label(label: str, value: str, node: Node) -> str | None:
    has = node.announced.labels.get(label)
    return None if has == value else f"labels: {label} is {'not set' if has is None else has}, not {value}"


def _has_model(name: str, node: Node) -> str | None:
    return None if name in _models(node) else f"model_name: {name} is not loaded and ready there"


def _has_platform(platform: Platform, node: Node) -> str | None:
    has = node.announced.inventory.platform
    return None if has is platform else f"platform: it is {has}, not {platform}"


def _has_vram(wanted: int, node: Node) -> str | None:
    total = sum(_usable(node, gpu) or 0 for gpu in node.announced.inventory.gpus if gpu_works(node, gpu))
    return _at_least("min_total_vram_mb", total, wanted, "its GPUs together")


def _has_gpus(demands: Sequence[Demand], needed: int, node: Node) -> str | None:
    """Looks no further once enough GPUs fit."""
    fit = 0
    for gpu in node.announced.inventory.gpus:
        if gpu_works(node, gpu) and _fits(demands, node, gpu):
            fit += 1
            if fit >= needed:
                return None
    return _too_few_gpus(demands, fit, needed, node)


def _fits(demands: Sequence[Demand], node: Node, gpu: Gpu) -> bool:
    for demand in demands:  # noqa: SIM110  # as in `matches`
        if demand(node, gpu) is not None:
            return False
    return True


def _too_few_gpus(demands: Sequence[Demand], fit: int, needed: int, node: Node) -> str:
    working = [gpu for gpu in node.announced.inventory.gpus if gpu_works(node, gpu)]
    if not working:
        return "requires_gpu: it has no GPU that works"
    lacks = dict.fromkeys(reason for gpu in working for demand in demands if (reason := demand(node, gpu)))
    why = f" ({'; '.join(lacks)})" if lacks else ""
    return f"min_gpu_count: {fit} of its {len(working)} GPUs fit, not {needed}{why}"


def _at_least(what: str, has: int | None, wanted: int, whose: str = "it") -> str | None:
    """What is not known does not satisfy a demand above zero."""
    if (has or 0) >= wanted:
        return None
    return f"{what}: {whose} has {'an unknown amount' if has is None else has}, not {wanted}"


def _usable(node: Node, gpu: Gpu) -> int | None:
    return usable_mb(gpu, node.announced.inventory.memory.total_mb)


def _capable(has: str | None, wanted: str) -> bool:
    has_numbers, wanted_numbers = _CAPABILITY.fullmatch(has or ""), _CAPABILITY.fullmatch(wanted)
    if has_numbers is None or wanted_numbers is None:
        return has == wanted
    return tuple(map(int, has_numbers.groups())) >= tuple(map(int, wanted_numbers.groups()))


def _models(node: Node) -> frozenset[str]:
    engines = node.workload.engines if node.workload is not None else ()
    return frozenset(engine.model_name for engine in engines if engine.state is EngineState.READY)


def _states(names: Sequence[str] | None) -> frozenset[NodeState] | None:
    if names is None:
        return None
    return frozenset(state for name in names if (state := named(NodeState, "states", name)) is not None)


def named(kind: type[E], field: str, name: str | None) -> E | None:
    if name is None:
        return None
    try:
        return kind(name.strip().upper())
    except ValueError:
        allowed = [str(each) for each in kind]
        raise Malformed(f"{field}: {name!r} is none of {', '.join(allowed)}", field=field, allowed=allowed) from None


def _most_free_vram(node: Node) -> float | None:
    known = [free_vram_mb(node, gpu) for gpu in node.announced.inventory.gpus]
    return max((free for free in known if free is not None), default=None)


_ORDERS: dict[str, Callable[[Node], float | None] | None] = {
    "node_id": None,
    "tier": lambda node: ORDER.index(node.announced.tier),
    "load_ratio": lambda node: node.beat.load_ratio if node.beat is not None else None,
    "free_ram_mb": free_ram_mb,
    "free_vram_mb": _most_free_vram,
    "free_slots": lambda node: node.workload.free_slots if node.workload is not None else None,
}
