"""What the kernel lets this process have: limits of control groups, version 1 and 2."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from libs.hardware.reading import number, text

UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" with a number near 2^63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The tightest of this process's group and the groups around it. None: no limit.

    `memory_used_bytes` is the use of the group whose limit is `memory_bytes`, without page cache that can be dropped.
    """

    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    swap_bytes: int | None = None
    processors: float | None = None


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    """What the two versions call differently. `inactive` is a word in `stat`."""

    limit: Path
    usage: Path
    stat: Path
    swap: Path | None
    inactive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Our own control group and those around it, the nearest first, in both versions: the files about memory, and the
    folders with those about processors."""

    memory: tuple["_MemoryFiles", ...]
    processors_v1: tuple[Path, ...]
    processors_v2: tuple[Path, ...]


def read_limits(root: Path = Path("/")) -> Limits:
    """`root` holds `proc/self/cgroup` and `sys/fs/cgroup`. A system without control groups has no limits."""
    return limits_of(own_groups(root))


def own_groups(root: Path = Path("/")) -> Groups:
    """Where we are now: finding that out takes longer than reading what the limits are."""
    groups = _own_groups(root)
    mounted = root / "sys/fs/cgroup"
    unified = tuple(_unified(mounted, groups))
    memory = [_files_v1(folder) for folder in _upwards(mounted / "memory", groups.get("memory"))]
    memory += [_files_v2(folder) for folder in unified]
    return Groups(
        memory=tuple(files for files in memory if files.limit.exists()),
        processors_v1=tuple(_upwards(mounted / "cpu", groups.get("cpu"))),
        processors_v2=unified,
    )


def limits_of(groups: Groups) -> Limits:
    """All of them, as they are now."""
    processors = [_quota_v1(folder) for folder in groups.processors_v1]
    processors += [_quota_v2(folder) for folder in groups.processors_v2]
    quotas = [quota for quota in processors if quota is not None]
    return replace(memory_limits_of(groups), processors=min(quotas, default=None))


def memory_limits_of(groups: Groups) -> Limits:
    """Without those of the processors."""
    limit, used = _tightest_memory(groups.memory)
    limits = (_limit(files.swap) for files in groups.memory if files.swap is not None)
    swaps = [amount for amount in limits if amount is not None]
    return Limits(memory_bytes=limit, memory_used_bytes=used, swap_bytes=min(swaps, default=None))


def _files_v1(folder: Path) -> _MemoryFiles:
    return _MemoryFiles(
        limit=folder / "memory.limit_in_bytes",
        usage=folder / "memory.usage_in_bytes",
        stat=folder / "memory.stat",
        swap=None,
        inactive="total_inactive_file",
    )


def _files_v2(folder: Path) -> _MemoryFiles:
    return _MemoryFiles(
        limit=folder / "memory.max",
        usage=folder / "memory.current",
        stat=folder / "memory.stat",
        swap=folder / "memory.swap.max",
        inactive="inactive_file",
    )


def _own_groups(root: Path) -> dict[str, str]:
    """From controller to path; the unified hierarchy is under the empty name."""
    found: dict[str, str] = {}
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _unified(mounted: Path, groups: dict[str, str]) -> Iterator[Path]:
    yield from _upwards(mounted, groups.get(""))
    yield from _upwards(mounted / "unified", groups.get(""))


def _upwards(mounted: Path, path: str | None) -> Iterator[Path]:
    """The group's folder and those around it, up to the mount point.

    In a container the path may be the host's, of which only the mount point is to be seen.
    """
    if path is None or not mounted.is_dir():
        return
    folder = mounted / path.lstrip("/")
    while folder != mounted and mounted in folder.parents:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mounted


def _tightest_memory(groups: Iterable[_MemoryFiles]) -> tuple[int | None, int | None]:
    tightest: tuple[int | None, int | None] = (None, None)
    for files in groups:
        limit = _limit(files.limit)
        if limit is not None and (tightest[0] is None or limit < tightest[0]):
            tightest = (limit, _used(files))
    return tightest


def _limit(path: Path) -> int | None:
    amount = number(path)
    return None if amount is None or amount >= UNLIMITED_BYTES else amount


def _used(files: _MemoryFiles) -> int | None:
    usage = number(files.usage)
    if usage is None:
        return None
    for line in (text(files.stat) or "").splitlines():
        word, _, amount = line.partition(" ")
        if word == files.inactive and amount.isdecimal():
            return max(0, usage - int(amount))
    return usage


def _quota_v1(folder: Path) -> float | None:
    quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (text(folder / "cpu.max") or "").partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def usable_processors(present: int, limits: Limits) -> int:
    """Whole processors that work may be spread over: a quota of 1.5 keeps two busy."""
    return present if limits.processors is None else max(1, min(present, math.ceil(limits.processors)))
