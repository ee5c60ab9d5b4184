"""From what a job left behind to what the mesh is told of it."""

import json
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from libs.common.contracts.base import MAX_OBJECT_BYTES
from libs.common.contracts.work_marshaling import Assignment, WorkCompleted, WorkError, WorkFailed
from services.node_agent.model import Outcome


def failed(code: str, message: str, *, retryable: bool, started_at: datetime | None, ended_at: datetime) -> Outcome:
    """An outcome without a result."""
    error = WorkError(code=code[:64], message=_writable(message)[:4096], retryable=retryable)
    return Outcome(error=error, started_at=started_at, ended_at=ended_at)


def completed(result: Any, *, started_at: datetime, ended_at: datetime) -> Outcome:
    """The result, if it can be told; otherwise a final error, because another attempt would make no other result."""
    problem = _problem_with(result)
    if problem is not None:
        return failed(problem[0], problem[1], retryable=False, started_at=started_at, ended_at=ended_at)
    return Outcome(result=result, started_at=started_at, ended_at=ended_at)


def message_for(assignment: Assignment, outcome: Outcome) -> WorkCompleted | WorkFailed:
    """What is published. Its message id is the attempt token."""
    about = {
        "work_id": assignment.work_id,
        "attempt_token": assignment.attempt_token,
        "node_id": assignment.node_id,
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
    }
    if outcome.error is not None:
        return WorkFailed.model_validate(about | {"error": outcome.error})
    return WorkCompleted.model_validate(about | {"result": outcome.result})


def _problem_with(result: Any) -> tuple[str, str] | None:
    if result is None:
        return None
    try:
        size = len(json.dumps(result, ensure_ascii=False, allow_nan=False).encode())
        WorkCompleted(work_id="any", result=result)
    except ValidationError as error:
        return "bad_result", f"the result cannot be told: {error.errors(include_url=False)[0]['msg']}"
    except (TypeError, ValueError, RecursionError) as error:
        return "bad_result", f"the result is not JSON: {error}"
    if size > MAX_OBJECT_BYTES:
        return "result_too_large", f"the result has {size} bytes; {MAX_OBJECT_BYTES} are the limit"
    return None


def _writable(text: str) -> str:
    """Without the half characters that JSON allows and UTF-8 does not."""
    return text.encode(errors="replace").decode()
