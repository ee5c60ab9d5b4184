"""Which GPUs a reservation gets: all that it wants, or none and what is in the way.

When asked for it, the set with the best connection comes first: NVLink between all of them, then one PCIe switch, then
one host bridge or NUMA node, then anything. Beside that the best fit: the GPUs with the least free memory that is
enough, so that the largest whole GPUs stay free. Among sets that fit as well, the better connected one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

from libs.common.contracts.node_registry import GpuLink
from services.gpu_orchestrator.model import RAM, Entry, Ledger

NVLINK, SWITCH, NODE, FAR = range(4)
_PATHS = {"INTERNAL": SWITCH, "PIX": SWITCH, "PXB": SWITCH, "PHB": NODE, "NODE": NODE}
Ranks = Mapping[frozenset[str], int]
"""How well two GPUs are connected, for those that are: the lower the better."""
MOST_SETS = 1000
"""Above so many possible sets only the likely ones are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """`uuids`: exactly these GPUs; None: any `gpu_count`. `required_mb` is wanted on each of them."""

    gpu_count: int
    required_mb: int
    ram_mb: int = 0
    uuids: tuple[str, ...] | None = None
    prefer_nvlink: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What one device lacks. `free_mb` is None when it is not known."""

    device: str
    free_mb: int | None
    missing_mb: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`uuids` when it fits; otherwise why not, and what would: so much on each of as many GPUs, or as much on fewer."""

    fits: bool
    uuids: tuple[str, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    reason: str = ""
    would_fit_mb: int = 0
    would_fit_gpus: int = 0


def ranks_of(links: Iterable[GpuLink]) -> Ranks:
    return {frozenset((link.first, link.second)): _rank(link) for link in links}


def choose(wish: Wish, ledger: Ledger, gpus: Sequence[str], ranks: Ranks) -> Choice:
    """`gpus`: those of the ledger that may be given, in the order of their indices."""
    eligible = gpus if wish.uuids is None else wish.uuids
    count = wish.gpu_count if wish.uuids is None else len(wish.uuids)
    given = {uuid: _given(ledger, uuid) for uuid in eligible}
    fitting = [uuid for uuid, mb in given.items() if mb >= wish.required_mb]
    lacks_ram = _given(ledger, RAM) < wish.ram_mb
    if len(fitting) < count or lacks_ram:
        return _refusal(wish, ledger, eligible, count, lacks_ram=lacks_ram)
    if wish.uuids is not None:
        return Choice(fits=True, uuids=wish.uuids)
    return Choice(fits=True, uuids=_best(wish, given, fitting, ranks))


def _best(wish: Wish, given: Mapping[str, int], fitting: Sequence[str], ranks: Ranks) -> tuple[str, ...]:
    by_fit = sorted(fitting, key=given.__getitem__)
    if wish.gpu_count <= 1:
        return tuple(by_fit[: wish.gpu_count])
    if not wish.prefer_nvlink:  # then who has more free than the last that is needed is in no best set
        most = given[by_fit[wish.gpu_count - 1]]
        by_fit = [uuid for uuid in by_fit if given[uuid] <= most]
    place = {uuid: number for number, uuid in enumerate(fitting)}

    def cost(chosen: Sequence[str]) -> tuple[object, ...]:
        links = [ranks.get(frozenset(pair), FAR) for pair in combinations(chosen, 2)]
        connection = (max(links, default=0), sum(links))
        left = sorted(given[uuid] for uuid in chosen)
        places = sorted(place[uuid] for uuid in chosen)
        return (connection, left, places) if wish.prefer_nvlink else (left, connection, places)

    best = min(_sets(by_fit, wish.gpu_count, ranks), key=cost)
    return tuple(sorted(best, key=place.__getitem__))


def _sets(by_fit: Sequence[str], count: int, ranks: Ranks) -> Iterator[tuple[str, ...]]:
    if comb(len(by_fit), count) <= MOST_SETS:
        yield from combinations(by_fit, count)
        return
    yield tuple(by_fit[:count])
    for seed in by_fit:
        near = sorted(by_fit, key=lambda other: (other != seed, ranks.get(frozenset((seed, other)), FAR)))
        yield tuple(islice(near, count))


def _rank(link: GpuLink) -> int:
    return NVLINK if link.nvlinks > 0 else _PATHS.get(link.path or "", FAR)


def _refusal(wish: Wish, ledger: Ledger, eligible: Sequence[str], count: int, *, lacks_ram: bool) -> Choice:
    short = [found for uuid in eligible if (found := _shortfall(ledger.get(uuid), uuid, wish.required_mb))]
    if lacks_ram and (found := _shortfall(ledger.get(RAM), RAM, wish.ram_mb)):
        short.append(found)
    given = sorted((_given(ledger, uuid) for uuid in eligible), reverse=True)
    fitting = sum(free >= wish.required_mb for free in given)
    reasons = [f"{fitting} of {count} GPUs have {wish.required_mb} MiB free"] if fitting < count else []
    if lacks_ram:
        reasons.append(f"{wish.ram_mb} MiB of RAM are wanted and {_given(ledger, RAM)} MiB free")
    return Choice(
        fits=False,
        shortfalls=tuple(short),
        reason="; ".join(reasons),
        would_fit_mb=given[count - 1] if 0 < count <= len(given) else 0,
        would_fit_gpus=fitting,
    )


def _shortfall(entry: Entry | None, uuid: str, required_mb: int) -> Shortfall | None:
    given = entry.given_mb if entry else 0
    if given >= required_mb:
        return None
    free = entry.free_mb if entry else None
    return Shortfall(device=uuid, free_mb=free, missing_mb=required_mb - given, reason=_why(entry))


def _why(entry: Entry | None) -> str:
    if entry is None or (entry.problem is None and entry.free_mb is None):
        return "how much of it is free is not known"
    if entry.problem is not None:
        return entry.problem
    return f"{entry.held_mb} MiB are claimed, {entry.foreign_mb} MiB used by others, {entry.margin_mb} MiB kept"


def _given(ledger: Ledger, uuid: str) -> int:
    entry = ledger.get(uuid)
    return entry.given_mb if entry is not None else 0
