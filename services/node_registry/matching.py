"""Which nodes match a query, and why the others do not."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from libs.common.contracts.node_registry import EngineState, Gpu, NodeQuery, NodeState, Platform, Tier
from libs.common.errors import Malformed
from libs.hardware.tiers import ORDER, better_or_equal, usable_mb
from services.node_registry.model import Node

E = TypeVar("E", bound=StrEnum)

_CAPABILITY = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query whose names have been read."""

    query: NodeQuery
    tier: Tier | None
    min_tier: Tier | None
    platform: Platform | None
    states: frozenset[NodeState] | None
    order: "Order"

    @property
    def about_gpus(self) -> bool:
        query = self.query
        asked = (query.gpu_model, query.compute_capability, query.min_vram_mb_per_gpu, query.min_free_vram_mb)
        return bool(query.requires_gpu or query.min_gpu_count) or any(clause is not None for clause in asked)


@dataclass(frozen=True, slots=True)
class Order:
    """How found nodes are ordered; what is not known comes last."""

    key: Callable[[Node], float | None] | None
    downwards: bool

    def sorted(self, nodes: Sequence[Node]) -> list[Node]:
        by_id = sorted(nodes, key=lambda node: node.node_id, reverse=self.key is None and self.downwards)
        key = self.key
        if key is None:
            return by_id
        known = [(value, node) for node in by_id if (value := key(node)) is not None]
        unknown = [node for node in by_id if key(node) is None]
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
        query=query,
        tier=_named(Tier, "tier", query.tier),
        min_tier=_named(Tier, "min_tier", query.min_tier),
        platform=_named(Platform, "platform", query.platform),
        states=_states(query.states),
        order=Order(_ORDERS[word], order.startswith("-")),
    )


def refusals(node: Node, wanted: Wanted) -> list[str]:
    """Why this node does not match, one sentence for each clause; none when it does."""
    return [*_about_node(node, wanted), *_about_machine(node, wanted), *_about_gpus(node, wanted)]


def free_vram_mb(node: Node, gpu: Gpu) -> int | None:
    """By the last heartbeat; before the first, by the announcement."""
    if gpu.unified_memory and gpu.vram_total_mb is None:
        return free_ram_mb(node)
    for beat in node.beat.gpus if node.beat is not None else ():
        if beat.uuid == gpu.uuid:
            return beat.vram_free_mb
    return gpu.vram_free_mb


def free_ram_mb(node: Node) -> int | None:
    told = node.beat.memory_available_mb if node.beat is not None else None
    return told if told is not None else node.announced.inventory.memory.available_mb


def _about_node(node: Node, wanted: Wanted) -> Iterator[str]:
    query, state, tier = wanted.query, node.life.state, node.announced.tier
    if query.node_ids is not None and node.node_id not in query.node_ids:
        yield "node_ids: it is not among them"
    if query.online_only and state is not NodeState.ONLINE:
        yield f"online_only: it is {state} ({node.life.reason})"
    if wanted.states is not None and state not in wanted.states:
        yield f"states: it is {state}"
    if wanted.tier is not None and tier is not wanted.tier:
        yield f"tier: it is {tier}, not {wanted.tier}"
    if wanted.min_tier is not None and not better_or_equal(tier, wanted.min_tier):
        yield f"min_tier: it is {tier}, less than {wanted.min_tier}"
    for label, value in query.labels.items():
        if node.announced.labels.get(label) != value:
            yield f"labels: {label} is {node.announced.labels.get(label, 'not set')}, not {value}"
    if query.model_name is not None and query.model_name not in _models(node):
        yield f"model_name: {query.model_name} is not loaded and ready there"


def _about_machine(node: Node, wanted: Wanted) -> Iterator[str]:
    query, inventory = wanted.query, node.announced.inventory
    if wanted.platform is not None and inventory.platform is not wanted.platform:
        yield f"platform: it is {inventory.platform}, not {wanted.platform}"
    if _less(inventory.memory.total_mb, query.min_ram_mb):
        yield f"min_ram_mb: it has {_known(inventory.memory.total_mb)}, not {query.min_ram_mb}"
    if _less(inventory.cpu.threads, query.min_cpu_threads):
        yield f"min_cpu_threads: it has {_known(inventory.cpu.threads)}, not {query.min_cpu_threads}"


def _about_gpus(node: Node, wanted: Wanted) -> Iterator[str]:
    query, gpus = wanted.query, [gpu for gpu in node.announced.inventory.gpus if _works(node, gpu)]
    ram = node.announced.inventory.memory.total_mb
    total = sum(usable_mb(gpu, ram) or 0 for gpu in gpus)
    if _less(total, query.min_total_vram_mb):
        yield f"min_total_vram_mb: its GPUs have {total} together, not {query.min_total_vram_mb}"
    if not wanted.about_gpus:
        return
    if not gpus:
        yield "requires_gpu: it has no GPU that works"
        return
    needed = max(1, query.min_gpu_count or 0)
    short = {gpu.uuid: list(_gpu_lacks(node, gpu, wanted)) for gpu in gpus}
    fit = sum(not reasons for reasons in short.values())
    if fit < needed:
        lacks = "; ".join(dict.fromkeys(reason for reasons in short.values() for reason in reasons))
        yield f"min_gpu_count: {fit} of its {len(gpus)} GPUs fit, not {needed}" + (f" ({lacks})" if lacks else "")


def _gpu_lacks(node: Node, gpu: Gpu, wanted: Wanted) -> Iterator[str]:
    query = wanted.query
    usable, free = usable_mb(gpu, node.announced.inventory.memory.total_mb), free_vram_mb(node, gpu)
    if _less(usable, query.min_vram_mb_per_gpu):
        yield f"min_vram_mb_per_gpu: {gpu.name} has {_known(usable)} usable, not {query.min_vram_mb_per_gpu}"
    if _less(free, query.min_free_vram_mb):
        yield f"min_free_vram_mb: {gpu.name} has {_known(free)} free, not {query.min_free_vram_mb}"
    if query.gpu_model is not None and query.gpu_model.lower() not in gpu.name.lower():
        yield f"gpu_model: it is {gpu.name}"
    if query.compute_capability is not None and not _capable(gpu.compute_capability, query.compute_capability):
        yield f"compute_capability: {gpu.name} has {gpu.compute_capability or 'an unknown one'}"


def _works(node: Node, gpu: Gpu) -> bool:
    beats = node.beat.gpus if node.beat is not None else ()
    return next((beat.healthy for beat in beats if beat.uuid == gpu.uuid), gpu.healthy)


def _capable(has: str | None, wanted: str) -> bool:
    has_numbers, wanted_numbers = _CAPABILITY.fullmatch(has or ""), _CAPABILITY.fullmatch(wanted)
    if has_numbers is None or wanted_numbers is None:
        return has == wanted
    return tuple(map(int, has_numbers.groups())) >= tuple(map(int, wanted_numbers.groups()))


def _models(node: Node) -> frozenset[str]:
    engines = node.workload.engines if node.workload is not None else ()
    return frozenset(engine.model_name for engine in engines if engine.state is EngineState.READY)


def _less(has: int | None, wanted: int | None) -> bool:
    """What is not known does not satisfy a demand above zero."""
    return wanted is not None and (has or 0) < wanted


def _known(amount: int | None) -> str:
    return "an unknown amount" if amount is None else str(amount)


def _states(names: Sequence[str] | None) -> frozenset[NodeState] | None:
    if names is None:
        return None
    return frozenset(state for name in names if (state := _named(NodeState, "states", name)) is not None)


def _named(kind: type[E], field: str, name: str | None) -> E | None:
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
