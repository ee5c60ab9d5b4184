"""RAM and swap, as far as this machine or its container may use them."""

import re
from contextlib import suppress
from pathlib import Path

from libs.common.contracts.node_registry import Memory
from libs.hardware.cgroup import Limits
from libs.hardware.reading import mib, text

KIB = 1024
_MEMINFO = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
_AMOUNT = re.compile(rf"^({'|'.join(_MEMINFO)}):\s*(\d+)\b", re.MULTILINE | re.ASCII)


def read_memory(limits: Limits, root: Path = Path("/")) -> Memory:
    """From the kernel's own table where it tells what is available, as Linux does; otherwise from psutil."""
    told = _meminfo(root)
    if told is None:
        import psutil

        ram, swap = psutil.virtual_memory(), psutil.swap_memory()
        told = (ram.total, ram.available, swap.total, swap.free)
    total, available, swap_total, swap_free = told
    return usable_memory(
        total=total, available=min(available, total), swap_total=swap_total, swap_free=swap_free, limits=limits
    )


def _meminfo(root: Path) -> tuple[int, int, int, int] | None:
    """Bytes of RAM, of these available, of swap, of these free; None where there is no such table."""
    found = {name: int(kib) * KIB for name, kib in _AMOUNT.findall(text(f"{root}/proc/meminfo") or "")}
    return tuple(found[name] for name in _MEMINFO) if len(found) == len(_MEMINFO) else None  # type: ignore[return-value]  # as many as there are names


def stalled_ratio(root: Path = Path("/")) -> float | None:
    """Of the last 10 s, in which everything waited for memory; None where the kernel keeps no account of it."""
    for line in (text(f"{root}/proc/pressure/memory") or "").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "full":
            with suppress(KeyError, ValueError):
                return min(1.0, float(dict(word.split("=", 1) for word in rest.split())["avg10"]) / 100)
    return None


def usable_memory(*, total: int, available: int, swap_total: int, swap_free: int, limits: Limits) -> Memory:
    """Bytes in, MiB out. A limit above what there is does not limit."""
    limit = limits.memory_bytes if limits.memory_bytes is not None and limits.memory_bytes < total else None
    if limit is not None:
        total = limit
        available = min(available, max(0, limit - (limits.memory_used_bytes or 0)))
    if limits.swap_bytes is not None:
        swap_total, swap_free = min(swap_total, limits.swap_bytes), min(swap_free, limits.swap_bytes)
    return Memory(
        total_mb=mib(total),
        available_mb=mib(available),
        swap_total_mb=mib(swap_total),
        swap_free_mb=mib(swap_free),
        limit_mb=mib(limit),
    )
