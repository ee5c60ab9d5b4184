"""Items as they are shown to people."""

from pydantic import JsonValue

from libs.common.contracts.work_marshaling import AttemptView, WorkView
from services.work_marshaling.model import Attempt, WorkItem


def view(item: WorkItem, result: JsonValue = None, unsatisfiable_now: str | None = None) -> WorkView:
    """An item as it is shown to people."""
    return WorkView(
        work_id=item.work_id,
        status=item.status,
        work_type=item.spec.work_type,
        model_name=item.spec.model_name,
        priority=item.spec.priority,
        submitter=item.spec.submitter,
        labels=dict(item.spec.labels),
        submitted_at=item.submitted_at,
        ended_at=item.ended_at,
        sequence=item.sequence,
        retry_of=item.spec.retry_of,
        attempts=tuple(attempt_view(attempt) for attempt in item.attempts),
        max_attempts=item.spec.max_attempts,
        retry_at=item.retry_at,
        error=item.error,
        result=result,
        result_bytes=item.result_bytes,
        unsatisfiable_now=unsatisfiable_now,
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    return AttemptView(
        attempt=attempt.number,
        node_id=attempt.node_id,
        assigned_at=attempt.assigned_at,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=None if attempt.outcome is None else attempt.outcome.value,
        error=attempt.error,
        counted=attempt.counted,
        despite=attempt.despite,
    )
