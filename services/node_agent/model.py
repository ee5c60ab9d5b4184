"""The nouns of the node agent: attempts as they are kept and as they run."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from libs.common.contracts.work_marshaling import Assignment, WorkError
from libs.common.errors import MeshError

INFERENCE_TYPES = ("inference", "chat")
EMBEDDING_TYPE = "embedding"
FUNCTION_TYPE = "function"
CONTAINER_TYPE = "container"
MOST_OUTPUT_CHARACTERS = 64 * 1024


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


@dataclass(slots=True)
class Output:
    """What a job has written so far: the end of it, after `before` characters that are not kept."""

    pieces: deque[str] = field(default_factory=deque)
    before: int = 0
    kept: int = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.kept += len(text)
        while self.kept > MOST_OUTPUT_CHARACTERS:
            self._drop(self.kept - MOST_OUTPUT_CHARACTERS)

    def text(self) -> str:
        return "".join(self.pieces)

    def _drop(self, characters: int) -> None:
        first = self.pieces.popleft()
        dropped = min(characters, len(first))
        if dropped < len(first):
            self.pieces.appendleft(first[dropped:])
        self.before += dropped
        self.kept -= dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOutput:
    """The output of an attempt that is over, as the journal keeps it."""

    text: str
    before: int


@dataclass(slots=True, kw_only=True)
class Running:
    """An attempt in hand. `untold` is partial output that no progress message told yet, at most so much of it."""

    assignment: Assignment
    accepted_at: datetime
    started_at: datetime
    output: Output = field(default_factory=Output)
    untold: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process or container that uses the memory which was claimed for a job: exactly one of them."""

    pid: int | None = None
    container_id: str | None = None


class JobFailed(MeshError):
    """A job ended without a result; `error` is what its submitter is told."""

    code = "job_failed"

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.error = WorkError(code=code[:64], message=message[:4096], retryable=retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainedEngine:
    """An engine that is to run in a container. `command` is what the image's own program is given."""

    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    gpu_uuids: Sequence[str]
