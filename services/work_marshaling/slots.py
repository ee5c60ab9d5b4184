"""How many more items a node would take, by the kinds of work that share its slots."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

UNLIMITED = 1_000_000


@dataclass(frozen=True, slots=True)
class SlotPool:
    work_types: frozenset[str]
    slots: int


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory that is kept for one item: RAM, and VRAM on each of so many GPUs."""

    ram_mb: int
    vram_mb: int = 0
    gpu_count: int = 0


class Slots:
    """The free slots of one node during one turn, taken one by one.

    `held` is how many of our leases there are on it, by work type. `ram_mb` and `vram_mb` (of each GPU that works) are
    what it told as free, None: not known; `promised` is what of that is somebody's already.
    `suspects` are the leases on it of items that may have killed a node: how much company each may have.
    """

    def __init__(
        self,
        pools: Iterable[SlotPool],
        held: Mapping[str, int] | None = None,
        *,
        ram_mb: int | None = None,
        vram_mb: Sequence[int] | None = None,
        promised: Iterable[Promise] = (),
        suspects: Sequence[int] = (),
        quota: int | None = None,
    ) -> None:
        self._pools = tuple(pools)
        self.aboard = sum((held or {}).values())
        self._quota = UNLIMITED if quota is None else quota
        self._suspects = len(suspects)
        self._company = min(suspects, default=0)
        self._ram_mb = ram_mb
        self._vram_mb = vram_mb
        for each in promised:
            self._keep(each)
        self._left = [pool.slots for pool in self._pools]
        for work_type, count in (held or {}).items():
            self._take(work_type, count)

    def free(self, work_type: str, memory: Promise | None = None, company: int = 0) -> int:
        """How many more of this kind; none where the memory that one needs is taken.

        Suspects share a node only with suspects, at most so many as each of them may have for `company`. `quota`: so
        many leases at most, whatever the slots.
        """
        if memory is not None and not self._has_memory(memory):
            return 0
        room = self._room(company)
        return min(self.has(work_type), room) if room > 0 else 0

    @property
    def quota_left(self) -> int:
        return self._quota - self.aboard

    def has(self, work_type: str) -> int:
        """Free slots for this kind, whoever asks."""
        free = 0
        for pool, left in zip(self._pools, self._left, strict=True):
            if left > 0 and work_type in pool.work_types:
                free += left
        return free

    def total(self) -> int:
        return sum(self._left)

    def take(self, work_type: str, *, memory: Promise | None = None, company: int = 0) -> None:
        """One of this kind, from the first pool that has one."""
        if memory is not None:
            self._keep(memory)
        self.aboard += 1
        if company:
            self._suspects += 1
            self._company = min(self._company or company, company)
        self._take(work_type, 1)

    def _has_memory(self, wanted: Promise) -> bool:
        if self._ram_mb is not None and self._ram_mb < wanted.ram_mb:
            return False
        return self._vram_mb is None or sum(free >= wanted.vram_mb for free in self._vram_mb) >= wanted.gpu_count

    def _keep(self, promised: Promise) -> None:
        """VRAM on those GPUs that have least of it and enough, as the ledger gives it."""
        if self._ram_mb is not None:
            self._ram_mb -= promised.ram_mb
        if self._vram_mb is not None and promised.gpu_count:
            left = sorted(self._vram_mb)
            first = min(bisect_left(left, promised.vram_mb), max(0, len(left) - promised.gpu_count))
            for place in range(first, min(first + promised.gpu_count, len(left))):
                left[place] -= promised.vram_mb
            self._vram_mb = left

    def _room(self, company: int) -> int:
        if company == 0:
            return 0 if self._suspects else self.quota_left
        if self.aboard > self._suspects:
            return 0
        return min(company, self._company or company, self._quota) - self._suspects

    def _take(self, work_type: str, count: int) -> None:
        """From the first pools that have them. What goes beyond all of them takes none."""
        for index, pool in enumerate(self._pools):
            if count > 0 and work_type in pool.work_types:
                taken = min(count, self._left[index])
                self._left[index] -= taken
                count -= taken
