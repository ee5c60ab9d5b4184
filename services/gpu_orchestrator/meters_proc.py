"""Processes, their parents and containers, from the kernel's `proc`."""

import asyncio
import os
import re
import resource
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from libs.hardware.reading import text
from services.gpu_orchestrator.meters import Family, Root

T = TypeVar("T")
NOBODY = Family(owners={}, alive={}, ram_mb={}, commands={})
MOST_ANCESTORS = 64
KIB_PER_MIB = 1024
MIB = 1024 * 1024
PAGE_BYTES = resource.getpagesize()
_OWN_KIB = re.compile(r"^Rss(?:Anon|Shmem):\s*(\d+)", re.MULTILINE)


_FIRST = 1
_KERNEL_THREAD = 0x0020_0000
"""`PF_KTHREAD` of the kernel's flags."""


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    start: int
    zombie: bool
    kernel: bool


class ProcProcesses:
    """Reads beside the event loop, in one thread of its own. `own_pid`: of the process that asks."""

    def __init__(self, root: Path = Path("/"), *, own_pid: int | None = None) -> None:
        self._proc = root / "proc"
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu-processes")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def start_of(self, pid: int) -> int | None:
        return await self._aside(lambda: self._start(pid))

    async def obstacle(self, pid: int) -> str | None:
        return await self._aside(lambda: self._obstacle(pid))

    async def has_container(self, container_id: str) -> bool:
        return await self._aside(lambda: any(container_id in self._group(pid) for pid in self._pids()))

    async def residents(self) -> Mapping[int, int]:
        return await self._aside(lambda: {pid: mb for pid in self._pids() if (mb := self._own_mb(pid)) is not None})

    async def commands(self, pids: Collection[int]) -> Mapping[int, str]:
        return await self._aside(lambda: self._commands(pids))

    async def families(self, roots: Collection[Root], pids: Collection[int]) -> Family:
        if not roots and not pids:
            return NOBODY
        return await self._aside(lambda: self._families(roots, pids))

    async def _aside(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _families(self, roots: Collection[Root], pids: Collection[int]) -> Family:
        if not roots:
            return Family(owners={}, alive={}, ram_mb={}, commands=self._commands(pids))
        stats = {pid: stat for pid in self._pids() if (stat := self._stat(pid)) is not None and not stat.zombie}
        by_process: dict[int | None, Root] = {
            root.pid: root for root in roots if root.pid is not None and self._is(root, stats)
        }
        containers = [root for root in roots if root.container_id is not None]
        owners: dict[int, tuple[str, ...]] = {}
        seen: set[str] = set()
        for pid in stats:
            around = self._of_container(pid, containers)
            root = self._ancestor(pid, stats, by_process) or around
            if root is not None:
                owners[pid] = root.reservation_ids
            seen.update(name for each in (root, around) if each is not None for name in each.reservation_ids)
        ram: dict[tuple[str, ...], int] = {}
        for pid, names in owners.items():
            ram[names] = ram.get(names, 0) + self._ram_kib(pid)
        return Family(
            owners=owners,
            alive={name: name in seen for root in roots for name in root.reservation_ids},
            ram_mb={names: kib // KIB_PER_MIB for names, kib in ram.items()},
            commands=self._commands(pids),
        )

    def _obstacle(self, pid: int) -> str | None:
        if pid == _FIRST:
            return "is the first process, from which all others descend"
        stat = self._stat(pid)
        if stat is not None and stat.kernel:
            return "is a thread of the kernel"
        if pid == self._own_pid:
            return "is the GPU orchestrator itself"
        return "is one from which the GPU orchestrator descends" if pid in self._ancestors(self._own_pid) else None

    def _ancestors(self, pid: int) -> Iterator[int]:
        for _ in range(MOST_ANCESTORS):
            stat = self._stat(pid)
            if stat is None:
                return
            pid = stat.parent
            yield pid

    def _is(self, root: Root, stats: Mapping[int, _Stat]) -> bool:
        stat = stats.get(root.pid or 0)
        return stat is not None and stat.start == root.pid_start

    def _ancestor(self, pid: int, stats: Mapping[int, _Stat], roots: Mapping[int | None, Root]) -> Root | None:
        for _ in range(MOST_ANCESTORS):
            if pid in roots:
                return roots[pid]
            stat = stats.get(pid)
            if stat is None:
                return None
            pid = stat.parent
        return None

    def _of_container(self, pid: int, roots: Collection[Root]) -> Root | None:
        if not roots:
            return None
        group = self._group(pid)
        return next((root for root in roots if root.container_id and root.container_id in group), None)

    def _pids(self) -> Sequence[int]:
        return [int(name) for name in os.listdir(self._proc) if name.isdecimal()] if self._proc.is_dir() else []

    def _start(self, pid: int) -> int | None:
        stat = self._stat(pid)
        return None if stat is None or stat.zombie else stat.start

    def _stat(self, pid: int) -> _Stat | None:
        # The name is in parentheses and may hold anything: what follows the last one is numbers.
        fields = self._text(pid, "stat").rpartition(")")[2].split()
        if len(fields) <= 19:
            return None
        is_kernel = bool(int(fields[6]) & _KERNEL_THREAD)
        return _Stat(parent=int(fields[1]), start=int(fields[19]), zombie=fields[0] in "ZX", kernel=is_kernel)

    def _group(self, pid: int) -> str:
        return self._text(pid, "cgroup")

    def _ram_kib(self, pid: int) -> int:
        """Its own pages and shared ones that are no files: what is only cached can be dropped."""
        return sum(int(kib) for kib in _OWN_KIB.findall(self._text(pid, "status")))

    def _own_mb(self, pid: int) -> int | None:
        """Without files and shared pages: cheaper to read than `_ram_kib`, for all processes at once."""
        words = self._text(pid, "statm").split()
        return (int(words[1]) - int(words[2])) * PAGE_BYTES // MIB if len(words) > 2 else None

    def _commands(self, pids: Collection[int]) -> dict[int, str]:
        return {pid: command for pid in pids if (command := self._text(pid, "cmdline").replace("\0", " ").strip())}

    def _text(self, pid: int, name: str) -> str:
        return text(f"{self._proc}/{pid}/{name}") or ""
