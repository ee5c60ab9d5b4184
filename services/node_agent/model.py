"""The nouns of the node agent: attempts as they are kept and as they run."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from libs.common.contracts.work_marshaling import Assignment, WorkError
from libs.common.errors import MeshError

INFERENCE_TYPES = ("inference", "chat")
EMBEDDING_TYPE = "embedding"
FUNCTION_TYPE = "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: with a result or with an error."""

    result: Any = None
    error: WorkError | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class AttemptState(StrEnum):
    """Where an attempt stands in the journal.

    `stopped` ends an attempt that was cancelled or fenced: nobody waits for its outcome.
    """

    ACCEPTED = "accepted"
    ENDED = "ended"
    DELIVERED = "delivered"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt as the journal keeps it."""

    assignment: Assignment
    state: AttemptState
    accepted_at: datetime
    outcome: Outcome | None = None

    @property
    def token(self) -> str:
        return self.assignment.attempt_token or ""


@dataclass(slots=True, kw_only=True)
class Running:
    """An attempt in hand. `text` is partial output that was not told yet."""

    assignment: Assignment
    accepted_at: datetime
    started_at: datetime
    produced_characters: int = 0
    text: list[str] = field(default_factory=list)


class JobFailed(MeshError):
    """A job ended without a result; `error` is what its submitter is told."""

    code = "job_failed"

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.error = WorkError(code=code[:64], message=message[:4096], retryable=retryable)
