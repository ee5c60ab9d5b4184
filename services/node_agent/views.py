"""Attempts as the outside is shown them."""

from libs.common.contracts.node_agent import JobLog, JobView
from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.model import Attempt, AttemptState, KeptOutput, Running


def job_id(assignment: Assignment) -> str:
    """What a job is called outside: its token is between its node and the queue."""
    return f"{assignment.work_id}@{assignment.attempt}"


def view_of_running(running: Running) -> JobView:
    assignment = running.assignment
    return JobView(
        job_id=job_id(assignment),
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
        job_id=job_id(assignment),
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


def log_from(shown: str, kept: KeptOutput, *, over: bool, after: int, lines: int | None) -> JobLog:
    """Of what is kept, the part beyond the first `after` characters of all output, and of that the last lines."""
    text = kept.text[max(0, after - kept.before) :]
    if lines is not None:
        text = "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
    return JobLog(
        job_id=shown,
        over=over,
        text=text.encode(errors="replace").decode(),
        next_after=kept.before + len(kept.text),
        left_out=max(0, kept.before + len(kept.text) - len(text) - after),
    )
