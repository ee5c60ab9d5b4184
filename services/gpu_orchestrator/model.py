"""The nouns of the ledger: claims, what was measured, and what follows. Sizes are MiB, times monotonic seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

RAM = "RAM"
"""The machine's memory is a device of the ledger like each GPU, under this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`foreign_hold_seconds`: for how long the most that a foreign process used stays protected. `leak_grace_seconds`:
    how long a process may go on after its claim ended. `healthy_seconds`: how long a GPU must be well to be used again.
    """

    foreign_hold_seconds: float = 60.0
    leak_grace_seconds: float = 30.0
    healthy_seconds: float = 60.0
    margin_mb: int = 256
    ram_margin_mb: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a reservation holds of one device."""

    reservation_id: str
    device: str
    claim_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that uses a device, and whose reservations it belongs to. `used_mb` is None when nobody tells."""

    pid: int
    used_mb: int | None
    owners: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as measured. `used_mb` is without `driver_mb`. `processes` is None when the driver tells none."""

    uuid: str
    total_mb: int | None
    used_mb: int | None
    driver_mb: int = 0
    processes: tuple[Process, ...] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The most that something used since `since`, and what will be held once that is long ago."""

    most_mb: int
    next_mb: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A process whose claim ended before it did."""

    pid: int
    reservation_id: str
    since: float
    age_seconds: float
    used_mb: int
    command: str | None
    leaked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A claim beside what its processes were seen to use. `held_mb`, the larger of both, is kept from others."""

    claim_mb: int
    measured_mb: int | None

    @property
    def held_mb(self) -> int:
        return max(self.claim_mb, self.measured_mb or 0)

    @property
    def over_claim(self) -> bool:
        return (self.measured_mb or 0) > self.claim_mb


class Entry(NamedTuple):
    """One device in the ledger. `free_mb` is None when it cannot be known; `attributed` says whether use is known by
    process; `grown_mb` is what more is used since the measurement, nobody knows yet by whom; `short_mb` is what more is
    promised and used than may be given. A device with a `problem` is not given to anybody."""

    uuid: str
    total_mb: int | None
    margin_mb: int
    driver_mb: int = 0
    uses: Mapping[str, Use] = MappingProxyType({})
    held_mb: int = 0
    ours_mb: int | None = None
    used_mb: int | None = None
    foreign_mb: int = 0
    grown_mb: int = 0
    free_mb: int | None = None
    short_mb: int = 0
    attributed: bool = True
    problem: str | None = None
    ill_until: float | None = None
    marks: Mapping[int, Mark] = MappingProxyType({})
    baseline_mb: int | None = None
    owners: Mapping[int, tuple[str, ...]] = MappingProxyType({})
    orphans: tuple[Orphan, ...] = ()

    @property
    def claimed_mb(self) -> int:
        return sum(use.claim_mb for use in self.uses.values())

    @property
    def leaked_mb(self) -> int:
        return sum(orphan.used_mb for orphan in self.orphans if orphan.leaked)

    @property
    def taken_mb(self) -> int | None:
        """What is gone of it, used or promised; of RAM only what is used, since that is what runs out."""
        if self.free_mb is None:
            return None
        return self.used_mb if self.uuid == RAM else self.driver_mb + self.held_mb + self.foreign_mb

    @property
    def given_mb(self) -> int:
        """What one more claim may have of it now."""
        return 0 if self.problem is not None or self.free_mb is None else self.free_mb


Ledger = Mapping[str, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something in the ledger that people should know. `kind`: over_claim, leaked, overfull, unusable, usable."""

    kind: str
    device: str
    message: str
    reservation_id: str | None = None
    pid: int | None = None
