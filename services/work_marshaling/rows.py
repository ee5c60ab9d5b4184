"""Finished work: told, as rows of the archive, and back. Pure."""

from typing import Any

from libs.common.archive.tables import Row
from libs.common.contracts.base import Json
from libs.common.contracts.work_marshaling import AttemptView, WorkView
from libs.common.contracts.work_records import Finished
from services.work_marshaling.facts import INLINE_BYTES, asked_for
from services.work_marshaling.model import WorkItem
from services.work_marshaling.views import attempt_view

OLD_ERROR_CHARACTERS = 200


def finished(item: WorkItem, result: Json) -> Finished:
    """What is kept of an item that ended."""
    assert item.ended_at is not None
    payload = item.spec.payload if item.spec.payload_ref is None else None
    return Finished(
        work_id=item.work_id,
        sequence=item.sequence,
        status=item.status,
        submitted_at=item.submitted_at,
        ended_at=item.ended_at,
        item=asked_for(item),
        payload=None if payload is None or len(payload) > INLINE_BYTES else payload.decode(),
        payload_bytes=item.spec.payload_bytes,
        digest=item.digest,
        max_attempts=item.spec.max_attempts,
        attempts=_shortened(tuple(attempt_view(attempt) for attempt in item.attempts)),
        error=item.error,
        result=result,
        result_bytes=item.result_bytes,
    )


def _shortened(attempts: tuple[AttemptView, ...]) -> tuple[AttemptView, ...]:
    """A hundred attempts with long errors would be more than a message takes."""
    return (*(_with_short_error(attempt) for attempt in attempts[:-1]), *attempts[-1:])


def _with_short_error(attempt: AttemptView) -> AttemptView:
    error = attempt.error
    if error is None or len(error.message) <= OLD_ERROR_CHARACTERS:
        return attempt
    short = error.model_copy(update={"message": error.message[: OLD_ERROR_CHARACTERS - 1] + "…"})
    return attempt.model_copy(update={"error": short})


def row_of(told: Finished, *, log_seq: int) -> dict[str, Any]:
    item = told.item
    return {
        "work_id": told.work_id,
        "sequence": told.sequence,
        "status": told.status.value,
        "work_type": item.work_type,
        "model_name": item.model_name,
        "node_id": told.attempts[-1].node_id if told.attempts else None,
        "submitter": item.submitter,
        "retry_of": item.retry_of,
        "priority": item.priority,
        "labels": dict(item.labels),
        "submitted_at": told.submitted_at,
        "ended_at": told.ended_at,
        "max_attempts": told.max_attempts,
        "attempts": [attempt.model_dump(mode="json") for attempt in told.attempts],
        "error": None if told.error is None else told.error.model_dump(mode="json"),
        "result": told.result,
        "result_bytes": told.result_bytes,
        "item": item.model_dump(mode="json", exclude_defaults=True),
        "payload": told.payload,
        "payload_bytes": told.payload_bytes,
        "digest": told.digest,
        "log_seq": log_seq,
    }


def finished_of(row: Row) -> Finished:
    kept = {name: value for name, value in row.items() if name in Finished.model_fields}
    return Finished.model_validate(kept)


def view_of(told: Finished) -> WorkView:
    """As it is shown to people."""
    item = told.item
    return WorkView(
        work_id=told.work_id,
        status=told.status,
        work_type=item.work_type,
        model_name=item.model_name,
        priority=item.priority,
        submitter=item.submitter,
        labels=item.labels,
        submitted_at=told.submitted_at,
        ended_at=told.ended_at,
        sequence=told.sequence,
        retry_of=item.retry_of,
        attempts=told.attempts,
        max_attempts=told.max_attempts,
        error=told.error,
        result=told.result,
        result_bytes=told.result_bytes,
        archived=True,
    )
