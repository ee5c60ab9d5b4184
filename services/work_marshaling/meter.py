"""What is counted on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The queue in numbers, at one instant."""

    epoch: int
    by_status: Mapping[str, int]
    pending_by_priority: Mapping[int, int]
    oldest_pending_seconds: float
    totals: Mapping[str, int]
    leases: int
    unwritten: int
    remembered_ids: int
    blacklisted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordMeasures:
    """Finished work on its way into the archive, large objects, and those who follow items."""

    unarchived: int
    waiting_rows: int
    behind_seconds: float
    object_bytes: int
    readers: int


class Role(StrEnum):
    """`starting`: it has not read the log yet, and could not lead."""

    LEADER = "leader"
    STANDBY = "standby"
    STARTING = "starting"


class Meter(Protocol):
    def appended(self, seconds: float, facts: int) -> None:
        """A record is on disk."""
        ...

    def assigned(self, seconds_since_submission: float) -> None: ...
    def lease_expired(self) -> None: ...
    def refused(self, node_id: str) -> None:
        """A node did not take an attempt."""
        ...

    def stream_fill(self, stream: str, ratio: float) -> None: ...
    def became(self, role: Role) -> None: ...
