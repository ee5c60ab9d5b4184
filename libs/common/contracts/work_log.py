"""The log of work marshaling: what it decided, as facts that a replay applies without deciding again."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from libs.common.contracts.base import JsonObject, Message, Moment, ObjectRef, Topic
from libs.common.contracts.log import LogEpoch, LogRecord
from libs.common.contracts.work_marshaling import WorkError, WorkItem


class IgnoredReason(StrEnum):
    """Why an outcome counted nothing."""

    LATE = "late"
    NO_TOKEN = "no_token"
    UNKNOWN_TOKEN = "unknown_token"
    UNKNOWN_ITEM = "unknown_item"
    UNREADABLE = "unreadable"


class ExpiryReason(StrEnum):
    """Why an attempt ended without an outcome."""

    LEASE = "lease"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    DIED = "died"


class Admitted(Message):
    """An item entered. `payload` is JSON text; null when it stays in the stream WORK_IN."""

    fact: Literal["admitted"] = "admitted"
    work_id: str
    sequence: int
    index: int = 0
    at: Moment
    item: WorkItem
    payload: str | None
    payload_bytes: int
    digest: str = Field("", description="of the content, 128 bits in hex; only for ids of submitters")
    max_attempts: int
    retry_delay_seconds: float


class Repeated(Message):
    """The same item was submitted again: this sequence leads to it too."""

    fact: Literal["repeated"] = "repeated"
    work_id: str
    sequence: int
    index: int = 0


class Refused(Message):
    """What was submitted did not become an item."""

    fact: Literal["refused"] = "refused"
    sequence: int
    index: int = 0
    work_id: str | None = None
    code: str
    reason: str


class PayloadKept(Message):
    """The payload of an old open item moved from WORK_IN into the log, so that WORK_IN can be trimmed."""

    fact: Literal["payload_kept"] = "payload_kept"
    work_id: str
    payload: JsonObject
    payload_bytes: int


class PayloadStored(Message):
    """The payload of an item that came to nothing is an object now, so that the item can be run again."""

    fact: Literal["payload_stored"] = "payload_stored"
    work_id: str
    payload_ref: ObjectRef


class Assigned(Message):
    fact: Literal["assigned"] = "assigned"
    work_id: str
    attempt: int
    node_id: str
    token: str
    at: Moment
    despite: str | None = Field(None, description="what speaks against this node, and was overruled")


class Started(Message):
    fact: Literal["started"] = "started"
    work_id: str
    attempt: int
    at: Moment


class Expired(Message):
    """An attempt ended without an outcome. One that was refused, or whose node died, is not `counted`."""

    fact: Literal["expired"] = "expired"
    work_id: str
    attempt: int
    at: Moment
    reason: ExpiryReason
    detail: str = ""
    counted: bool = True


class AttemptFailed(Message):
    fact: Literal["attempt_failed"] = "attempt_failed"
    work_id: str
    attempt: int
    at: Moment
    error: WorkError
    out_seq: int
    started_at: Moment | None = None
    counted: bool = Field(True, description="false: it failed because its node died")


class RetryAt(Message):
    """The item waits until then for its next attempt."""

    fact: Literal["retry_at"] = "retry_at"
    work_id: str
    at: Moment


class Requeued(Message):
    """The item is pending again."""

    fact: Literal["requeued"] = "requeued"
    work_id: str


class Ended(Message):
    """The one outcome that counts. `attempt` is null when no attempt brought it about (a deadline, for instance)."""

    fact: Literal["ended"] = "ended"
    work_id: str
    at: Moment
    status: Literal["completed", "failed", "dead"]
    attempt: int | None = None
    out_seq: int | None = None
    result_bytes: int = 0
    error: WorkError | None = None
    started_at: Moment | None = Field(None, description="when its worker began, as it tells")


class Cancelled(Message):
    fact: Literal["cancelled"] = "cancelled"
    work_id: str
    at: Moment
    reason: str = ""


class Ignored(Message):
    """An outcome was heard and counts nothing."""

    fact: Literal["ignored"] = "ignored"
    work_id: str
    out_seq: int
    reason: IgnoredReason


class Remembered(Message):
    """Ids of submitters whose items ended and were forgotten: 16 bytes of id and 16 of content each, base64."""

    fact: Literal["remembered"] = "remembered"
    until: Moment
    count: int
    digests: str


class Archived(Message):
    """These items ended, and WORK_DONE has them or had them: from there they go into the archive."""

    fact: Literal["archived"] = "archived"
    work_ids: tuple[str, ...]


class Blacklisted(Message):
    """A node gets nothing, or (with `model_name`) nothing for this model, until its term is over."""

    fact: Literal["blacklisted"] = "blacklisted"
    node_id: str
    model_name: str | None = None
    at: Moment
    until: Moment | None = Field(None, description="null: until somebody takes it off")
    reason: str
    failure_rate: float | None = Field(None, description="the lower bound that led to it")
    strikes: int = Field(1, ge=1, description="how often by now; each term is twice as long")
    by: Literal["rate", "operator"]


class Paroled(Message):
    """A node is off the blacklist, on trial: one attempt at a time, more with each success."""

    fact: Literal["paroled"] = "paroled"
    node_id: str
    model_name: str | None = None
    at: Moment
    reason: str
    strikes: int = 1
    by: Literal["term", "operator"]


ItemFact = (
    Admitted
    | PayloadKept
    | PayloadStored
    | Assigned
    | Started
    | Expired
    | AttemptFailed
    | RetryAt
    | Requeued
    | Ended
    | Cancelled
)
"""A fact that changes one item."""

Fact = ItemFact | Repeated | Refused | Ignored | Remembered | Archived | Blacklisted | Paroled


class WorkRecord(LogRecord):
    """Decisions in order, and how far both input streams had been read when they were made.

    `totals` is only in the record that ends a checkpoint.
    """

    in_seq: int = Field(ge=0)
    out_seq: int = Field(ge=0)
    facts: tuple[Annotated[Fact, Field(discriminator="fact")], ...] = ()
    totals: dict[str, int] = {}


EPOCH = Topic(
    subject="compute.work.epoch.v1",
    message=LogEpoch,
    owner="work_marshaling",
    heard_by="work_marshaling",
    summary="A leader took over the log, or began a checkpoint.",
    stream="WORK_LOG",
)
RECORD = Topic(
    subject="compute.work.log.v1",
    message=WorkRecord,
    owner="work_marshaling",
    heard_by="work_marshaling",
    summary="What the leader decided.",
    stream="WORK_LOG",
)
