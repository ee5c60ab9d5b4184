"""What is said about work: submitted, decided, assigned, ended.

How these messages together never lose and never double an item: `docs/work-protocol.md`.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from libs.common.contracts.base import (
    AttemptToken,
    Call,
    ErrorBody,
    Identifier,
    Json,
    JsonObject,
    LabelName,
    LabelValue,
    Message,
    Moment,
    ObjectRef,
    Topic,
)
from libs.common.contracts.work_leading import FromLeader
from libs.common.contracts.work_requirements import NO_REQUIREMENTS, JobMemory, Requirements

RESERVED_WORK_IDS = frozenset({"dead", "by-sequence", "submit", "submit-batch"})
SERVER_PREFIX = "srv-"
EXTERNAL = "external"
AGENT_RESTARTED = "agent_restarted"
"""The error code of an attempt that was cut short because its worker's process died. It is not the item's failure."""

WorkType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def _own_id(work_id: str) -> str:
    if work_id.startswith(SERVER_PREFIX):
        raise ValueError(f"starts with {SERVER_PREFIX}, which is kept for ids made by the server")
    if work_id in RESERVED_WORK_IDS:
        raise ValueError("is a word of our own routes")
    return work_id


WorkId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$"), AfterValidator(_own_id)]
"""A submitter's own id: letters, digits, `_.:-`; not a reserved word, not starting with `srv-`."""


class WorkStatus(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


class WorkItem(Message):
    """Work to be done, as its submitter wrote it.

    `work_id` is the idempotency key: the same id with the same content is the same item. Without one the server
    makes it. `timeout_seconds` is per attempt, `deadline` for the whole item.
    """

    work_id: WorkId | None = None
    work_type: WorkType
    model_name: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    priority: int = Field(5, ge=0, le=9, description="0 is the highest")
    payload: JsonObject = {}
    payload_ref: ObjectRef | None = Field(
        None, description="an object of WORK_OBJECTS that holds the payload as JSON; then `payload` is left out"
    )
    requirements: Requirements = NO_REQUIREMENTS
    timeout_seconds: float = Field(300.0, gt=0, le=7 * 86400)
    deadline: Moment | None = None
    max_attempts: int | None = Field(None, ge=1, le=100)
    retry_delay_seconds: float | None = Field(None, ge=0, le=86400)
    not_before: Moment | None = None
    labels: dict[LabelName, LabelValue] = Field({}, max_length=64)
    submitter: Annotated[str, StringConstraints(max_length=128)] | None = None
    retry_of: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, description="the ended item that this one repeats"
    )
    refuse_unsatisfiable: bool = Field(
        False, description="refuse it when no node that is known could ever run it, instead of waiting for one"
    )


class WorkBatch(Message):
    """Items that our REST door accepted together, with the ids it gave the caller."""

    items: tuple[WorkItem, ...] = Field(max_length=10_000)


class WorkError(Message):
    """Why an attempt failed. Whether another attempt may succeed is the worker's to say."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    message: Annotated[str, StringConstraints(max_length=4096)]
    retryable: bool = True


class Assignment(Message):
    """One attempt at one item, given to one node."""

    work_id: str
    attempt: int = Field(ge=1)
    attempt_token: str | None
    node_id: Identifier
    work_type: WorkType
    model_name: str | None = None
    priority: int = 5
    timeout_seconds: float
    lease_seconds: float
    deadline: Moment | None = None
    labels: dict[str, str] = {}
    payload: JsonObject | None = Field(
        None, description="absent in the copy for observers, and when `payload_ref` says where it is"
    )
    payload_ref: ObjectRef | None = Field(None, description="the object of WORK_OBJECTS that holds a large payload")
    payload_bytes: int = 0
    memory: JobMemory | None = Field(None, description="to be claimed in the node's ledger before the job starts")


class Assignments(FromLeader):
    """Attempts for this node. It journals them, then answers."""

    assignments: tuple[Assignment, ...] = Field(max_length=1000)
    again: bool = Field(False, description="some of them may have been told to the node before")


class AssignmentAnswer(Message):
    attempt_token: str
    accepted: bool
    reason: str = ""
    short_of_memory: bool = Field(False, description="refused for this alone: what needs less may be taken")
    other_run: bool = Field(
        False, description="refused since its token is of a run of the agent that nothing is known of"
    )


class AssignmentAnswers(Message):
    boot_id: Identifier
    answers: tuple[AssignmentAnswer, ...]


class WorkCompleted(Message):
    """An attempt succeeded. Outside workers that were given an item through `external` may leave the token out."""

    work_id: str = Field(min_length=1, max_length=128)
    attempt_token: AttemptToken | None = None
    node_id: Identifier | None = None
    result: Json = None
    result_ref: ObjectRef | None = Field(
        None, description="an object of WORK_OBJECTS that holds the result as JSON; then `result` is left out"
    )
    started_at: Moment | None = None
    ended_at: Moment | None = None


class WorkFailed(Message):
    """An attempt failed."""

    work_id: str = Field(min_length=1, max_length=128)
    attempt_token: AttemptToken | None = None
    node_id: Identifier | None = None
    error: WorkError
    started_at: Moment | None = None
    ended_at: Moment | None = None


class AttemptProgress(Message):
    attempt_token: AttemptToken
    work_id: str = Field(max_length=128)
    fraction: float | None = Field(None, ge=0, le=1)
    text: str | None = Field(None, max_length=262_144, description="partial output since the last message")


class WorkProgress(Message):
    """The attempts a node is working on. Each one named here has its lease renewed."""

    node_id: Identifier
    boot_id: Identifier
    at: Moment
    attempts: tuple[AttemptProgress, ...] = Field(max_length=1000)


class StopAttempts(FromLeader):
    """The node is to end these attempts, and then to answer."""

    attempt_tokens: tuple[str, ...]
    reason: str


class AttemptsStopped(Message):
    stopped: tuple[str, ...]
    unknown: tuple[str, ...]


class AttemptView(Message):
    """One try of one node, known by its number: its token is a secret between its node and us."""

    attempt: int
    node_id: str
    assigned_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None
    outcome: Literal["completed", "failed", "expired", "cancelled"] | None = None
    error: WorkError | None = None
    despite: str | None = Field(None, description="what spoke against this node, and was overruled")
    counted: bool = Field(True, description="towards `max_attempts`; not one that was refused, or whose node died")


class WorkView(Message):
    """An item as work marshaling knows it."""

    work_id: str
    status: WorkStatus
    work_type: str
    model_name: str | None = None
    priority: int
    submitter: str | None = None
    labels: dict[str, str] = {}
    submitted_at: Moment
    ended_at: Moment | None = None
    sequence: int = Field(description="where the item stands in the stream WORK_IN")
    retry_of: str | None = Field(None, description="the ended item that this one repeats")
    attempts: tuple[AttemptView, ...] = ()
    max_attempts: int
    retry_at: Moment | None = None
    error: WorkError | None = None
    result: Json = None
    result_bytes: int = Field(0, ge=0, description="of the message that told the result")
    archived: bool = Field(False, description="no longer at hand: this is what the archive knows")
    unsatisfiable_now: str | None = Field(None, description="pending, and why no node that is known could ever run it")


class WorkAccepted(Message):
    """The receipt: from here on the item is not lost and counts once."""

    work_id: str
    sequence: int
    status: WorkStatus = WorkStatus.PENDING
    duplicate: bool = False
    unsatisfiable_now: str | None = Field(None, description="why no node that is known could ever run it")
    warnings: tuple[str, ...] = Field((), description="what was ignored in the item, because it is unknown")


class WorkLookup(Message):
    """Which item: by its id, or by the sequence that the durable receipt told. One of the two."""

    work_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    sequence: int | None = Field(None, ge=1)


class CancelWork(Message):
    work_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    reason: Annotated[str, StringConstraints(max_length=512)] = ""


SUBMIT = Topic(
    subject="compute.work.submit.v1",
    message=WorkItem,
    owner="anyone",
    heard_by="work_marshaling",
    summary="A work item. A request on it is answered by the stream's receipt, whose sequence leads to the item.",
    stream="WORK_IN",
)
SUBMITTED = Topic(
    subject="compute.work.submitted.v1",
    message=WorkBatch,
    owner="work_marshaling",
    heard_by="work_marshaling",
    summary="Items accepted by the REST door, several to a message.",
    stream="WORK_IN",
)
ASSIGN = Call(
    subject="compute.work.assigned.v1",
    request=Assignments,
    reply=AssignmentAnswers,
    owner="node_agent",
    asked_by="work_marshaling",
    summary="Attempts for one node, which journals them before it answers.",
    per_node=True,
)
ASSIGNED = Topic(
    subject="compute.work.assigned.v1",
    message=Assignment,
    owner="work_marshaling",
    heard_by="observers and outside workers",
    summary="One copy of every assignment, for observers; with its payload and for outside workers when `node_id` is "
    "`external`.",
)
STOP = Call(
    subject="compute.work.stop.v1",
    request=StopAttempts,
    reply=AttemptsStopped,
    owner="node_agent",
    asked_by="work_marshaling",
    summary="Stop attempts: cancelled, fenced or timed out.",
    per_node=True,
)
COMPLETED = Topic(
    subject="compute.work.completed.v1",
    message=WorkCompleted,
    owner="node_agent and outside workers",
    heard_by="work_marshaling",
    summary="An attempt succeeded; carries the result.",
    stream="WORK_OUT",
)
FAILED = Topic(
    subject="compute.work.failed.v1",
    message=WorkFailed,
    owner="node_agent and outside workers",
    heard_by="work_marshaling",
    summary="An attempt failed; says whether another may succeed.",
    stream="WORK_OUT",
)
PROGRESS = Topic(
    subject="compute.work.progress.v1",
    message=WorkProgress,
    owner="node_agent",
    heard_by="work_marshaling",
    summary="Renews the leases of the attempts it names; progress and partial output.",
)
CANCEL = Call(
    subject="compute.work.cancel.v1",
    request=CancelWork,
    reply=WorkView,
    owner="work_marshaling",
    summary="Cancel an item in any state; an ended one is answered with `conflict`.",
)
WORK_STATUS = Call(
    subject="compute.work.status.v1",
    request=WorkLookup,
    reply=WorkView,
    owner="work_marshaling",
    summary="An item by its id or its sequence.",
)


class SubmitMany(Message):
    """Several items at once. Each is read and answered on its own: a bad one refuses only itself."""

    items: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=10_000)


class SubmitAnswer(Message):
    """What became of one item: its receipt, or why it was refused."""

    accepted: WorkAccepted | None = None
    error: ErrorBody | None = None


class SubmitAnswers(Message):
    """In the order in which the items were given."""

    answers: tuple[SubmitAnswer, ...]
    accepted: int
    refused: int


class WorkStats(Message):
    """The queue in numbers. `totals` count since the log began, in the words of the metrics."""

    epoch: int
    by_status: dict[str, int]
    pending_by_priority: dict[str, int]
    oldest_pending_seconds: float | None
    open_items: int
    ended_kept: int
    remembered_ids: int
    totals: dict[str, int]
    leases: int
    nodes: dict[str, int] = Field({}, description="free slots of each node")
    stream_fill_ratio: dict[str, float] = {}
