"""How many more items a node would take, by the kinds of work that share its slots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotPool:
    work_types: frozenset[str]
    slots: int


class Slots:
    """The free slots of one node during one turn, taken one by one.

    `held` is how many of our leases there are on it, by work type. `ram_mb` is what is free of it; None: not known.
    """

    def __init__(
        self, pools: Iterable[SlotPool], held: Mapping[str, int] | None = None, *, ram_mb: int | None = None
    ) -> None:
        self._pools = tuple(pools)
        self._ram_mb = ram_mb
        self._left = [pool.slots for pool in self._pools]
        for work_type, count in (held or {}).items():
            self.take(work_type, count)

    def free(self, work_type: str, ram_mb: int = 0) -> int:
        """How many more of this kind; none where the memory that one needs is taken."""
        if ram_mb and self._ram_mb is not None and self._ram_mb < ram_mb:
            return 0
        return sum(
            left
            for pool, left in zip(self._pools, self._left, strict=True)
            if left > 0 and work_type in pool.work_types
        )

    def total(self) -> int:
        return sum(self._left)

    def take(self, work_type: str, count: int = 1, *, ram_mb: int = 0) -> None:
        """From the first pools that have them. What goes beyond all of them takes none."""
        if self._ram_mb is not None:
            self._ram_mb -= ram_mb
        for index, pool in enumerate(self._pools):
            if count > 0 and work_type in pool.work_types:
                taken = min(count, self._left[index])
                self._left[index] -= taken
                count -= taken
