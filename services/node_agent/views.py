"""Attempts as the outside is shown them."""

from libs.common.contracts.node_agent import JobView
from services.node_agent.model import Attempt, AttemptState, Running


def view_of_running(running: Running) -> JobView:
    assignment = running.assignment
    return JobView(
        attempt_token=assignment.attempt_token or "",
        work_id=assignment.work_id,
        attempt=assignment.attempt,
        work_type=assignment.work_type,
        model_name=assignment.model_name,
        state="running",
        accepted_at=running.accepted_at,
    )


def view_of_kept(attempt: Attempt) -> JobView:
    assignment, outcome = attempt.assignment, attempt.outcome
    known = outcome is not None and attempt.state != AttemptState.STOPPED
    return JobView(
        attempt_token=attempt.token,
        work_id=assignment.work_id,
        attempt=assignment.attempt,
        work_type=assignment.work_type,
        model_name=assignment.model_name,
        state="running" if outcome is None else attempt.state.value,
        accepted_at=attempt.accepted_at,
        ended_at=outcome.ended_at if outcome else None,
        succeeded=(outcome.error is None) if known and outcome else None,
        error=outcome.error if outcome else None,
    )
