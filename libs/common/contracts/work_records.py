"""Finished work as it is kept: on its way into the archive, and what is read back from there."""

from pydantic import Field

from libs.common.contracts.base import Json, Message, Moment, Topic
from libs.common.contracts.work_marshaling import AttemptView, WorkError, WorkItem, WorkStatus, WorkView


class Finished(Message):
    """An item that ended, with all that is kept of it.

    `payload` is JSON text; null when it was too large to be kept. `result` is there when it is small. `digest` is that
    of the content, only for ids of submitters. Of errors before the last one the beginning is kept.
    """

    work_id: str
    sequence: int
    status: WorkStatus
    submitted_at: Moment
    ended_at: Moment
    item: WorkItem
    payload: str | None = None
    payload_bytes: int = 0
    digest: str = ""
    max_attempts: int
    attempts: tuple[AttemptView, ...] = ()
    error: WorkError | None = None
    result: Json = None
    result_bytes: int = Field(0, ge=0)


class FinishedWork(Message):
    """Items that ended, in the order of their ends. The same item may be told twice."""

    items: tuple[Finished, ...]


class WorkResult(Message):
    """How an item ended. `result` is what its worker told; null unless it completed."""

    work_id: str
    status: WorkStatus
    ended_at: Moment | None = None
    node_id: str | None = None
    result: Json = None
    error: WorkError | None = None


class WorkPage(Message):
    """Items, the newest first. `cursor` leads to the next page; null on the last one."""

    items: tuple[WorkView, ...]
    cursor: str | None = None


FINISHED = Topic(
    subject="compute.work.finished.v1",
    message=FinishedWork,
    owner="work_marshaling",
    heard_by="work_marshaling",
    summary="Items that ended, for the archive.",
    stream="WORK_DONE",
)
