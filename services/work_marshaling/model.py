"""The nouns of the queue: items, attempts, and what can happen to them. Nothing here changes; it is replaced.

What is replaced with every fact is a named tuple: that takes a sixth of the time that a frozen dataclass takes.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from libs.common.contracts.base import ObjectRef
from libs.common.contracts.work_log import Fact, IgnoredReason, ItemFact
from libs.common.contracts.work_marshaling import (
    EXTERNAL,
    WorkError,
    WorkStatus,
)
from libs.common.contracts.work_marshaling import (
    WorkItem as Submission,
)
from libs.common.contracts.work_requirements import Requirements

ENDED = frozenset({WorkStatus.COMPLETED, WorkStatus.FAILED, WorkStatus.CANCELLED, WorkStatus.DEAD})
LEASED = frozenset({WorkStatus.ASSIGNED, WorkStatus.RUNNING})


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Attempt(NamedTuple):
    """One try of one node. An attempt that is not `counted` was refused before it ran, or its node `died` meanwhile."""

    number: int
    token: str
    node_id: str
    assigned_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    error: WorkError | None = None
    counted: bool = True
    died: bool = False
    despite: str | None = None
    out_seq: int | None = None


class Spec(NamedTuple):
    """What was asked for, with the defaults filled in. `payload` is JSON; None while it stays in WORK_IN."""

    work_type: str
    model_name: str | None
    priority: int
    requirements: Requirements
    timeout_seconds: float
    deadline: datetime | None
    not_before: datetime | None
    max_attempts: int
    retry_delay_seconds: float
    labels: tuple[tuple[str, str], ...]
    submitter: str | None
    payload: bytes | None
    payload_bytes: int
    retry_of: str | None = None
    payload_ref: ObjectRef | None = None

    @property
    def carried_bytes(self) -> int:
        """What the payload adds to an assignment."""
        return self.payload_bytes if self.payload_ref is None else 0

    @property
    def external(self) -> bool:
        """Asked to be done by an outside worker."""
        return self.requirements.node_ids == (EXTERNAL,)


class WorkItem(NamedTuple):
    """An item on its way. `order` is its place among all submissions; `live` its attempt that holds the lease."""

    work_id: str
    sequence: int
    index: int  # type: ignore[assignment]  # nobody asks an item for the place of one of its fields
    submitted_at: datetime
    digest: str
    spec: Spec
    status: WorkStatus = WorkStatus.PENDING
    attempts: tuple[Attempt, ...] = ()
    retry_at: datetime | None = None
    ended_at: datetime | None = None
    error: WorkError | None = None
    out_seq: int | None = None
    result_bytes: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return self.sequence, self.index

    @property
    def open(self) -> bool:
        return self.status not in ENDED

    @property
    def live(self) -> Attempt | None:
        return self.attempts[-1] if self.status in LEASED else None

    @property
    def counted_attempts(self) -> int:
        return sum(attempt.counted for attempt in self.attempts)

    @property
    def deaths(self) -> int:
        """How often a node died while it ran there."""
        return sum(attempt.died for attempt in self.attempts)

    @property
    def killed(self) -> frozenset[str]:
        """The nodes that died while it ran there."""
        return frozenset(attempt.node_id for attempt in self.attempts if attempt.died)

    def attempt_with(self, token: str) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.token == token), None)


# What can happen to an item. Each names the one it happens to only where the item itself is not at hand.


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """`forgotten_digest` is the content of an ended item of this id that is no longer at hand."""

    work_id: str
    sequence: int
    index: int
    at: datetime
    item: Submission
    payload: str | None
    payload_bytes: int
    digest: str
    forgotten_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The scheduler chose a node, `despite` what speaks against it."""

    node_id: str
    token: str
    despite: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    work_id: str
    token: str | None
    out_seq: int
    result_bytes: int
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    work_id: str
    token: str | None
    out_seq: int
    error: WorkError
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired:
    """Nobody renewed the lease, or (`timeout`) the attempt took longer than an attempt may, or its node `died`."""

    token: str
    timeout: bool = False
    died: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRefused:
    """The node did not take the attempt, so it did not run."""

    token: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue:
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLost:
    """The payload was to be read from WORK_IN and is no longer there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    reason: str = ""


Event = (
    Submitted
    | Given
    | Progressed
    | Completed
    | Failed
    | LeaseExpired
    | NodeRefused
    | RetryDue
    | DeadlinePassed
    | PayloadLost
    | Cancel
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How often and how soon a failed item is tried again.

    `poison_nodes`: an item that was aboard when so many different nodes died is dead, and so is one that was aboard at
    `deaths_most` deaths of whatever nodes.
    """

    retry_max: int
    retry_delay_seconds: float
    retry_delay_most_seconds: float = 3600.0
    poison_nodes: int = 3
    deaths_most: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductRules:
    """When a node is blacklisted, and for how long; see `conduct` and the settings of the same names."""

    window_seconds: float = 600.0
    failure_rate: float = 0.5
    term_seconds: float = 60.0
    term_most_seconds: float = 3600.0
    fast_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the queue is run; see the settings of the same names."""

    policy: Policy
    conduct: ConductRules = ConductRules()
    lease_seconds: float = 30.0
    offer_seconds: float = 5.0
    avoid_seconds: float = 10.0
    ageing_seconds: float = 300.0
    node_silence_seconds: float = 30.0
    node_kept_seconds: float = 86_400.0
    open_most: int = 1_000_000
    ended_most: int = 100_000
    ended_keep_seconds: float = 86_400.0
    remembered_most: int = 1_000_000
    remembered_keep_seconds: float = 86_400.0
    checkpoint_records: int = 20_000
    checkpoint_bytes: int = 128 * 1024 * 1024
    upkeep_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Effect: give the attempt to its node. `again`: an earlier leader may have done so already."""

    work_id: str
    node_id: str
    token: str
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Effect: tell the node that this attempt is no longer wanted."""

    node_id: str
    token: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TellEnd:
    """Effect: whoever waits for this item may have it."""

    work_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Effect: whoever follows this item is told."""

    item: WorkItem


Effect = Offer | Stop | TellEnd | Changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a submission did not become an item."""

    code: str
    reason: str
    work_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Every field that is given must hold."""

    status: frozenset[WorkStatus] | None = None
    work_type: str | None = None
    model_name: str | None = None
    node_id: str | None = None
    since: datetime | None = None

    def holds(self, item: WorkItem) -> bool:
        return (
            (self.status is None or item.status in self.status)
            and (self.work_type is None or item.spec.work_type == self.work_type)
            and (self.model_name is None or item.spec.model_name == self.model_name)
            and (self.since is None or item.submitted_at >= self.since)
            and (self.node_id is None or any(attempt.node_id == self.node_id for attempt in item.attempts))
        )


__all__ = [
    "ENDED",
    "LEASED",
    "Attempt",
    "Cancel",
    "Changed",
    "Completed",
    "DeadlinePassed",
    "Effect",
    "Event",
    "Fact",
    "Failed",
    "Filter",
    "Given",
    "IgnoredReason",
    "ItemFact",
    "LeaseExpired",
    "NodeRefused",
    "Offer",
    "Outcome",
    "PayloadLost",
    "Policy",
    "Progressed",
    "Refusal",
    "RetryDue",
    "Rules",
    "Spec",
    "Stop",
    "Submission",
    "Submitted",
    "TellEnd",
    "WorkItem",
]
