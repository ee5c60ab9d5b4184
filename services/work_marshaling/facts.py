"""Applying facts to items, and telling an item as the facts that would make it again (for checkpoints)."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from libs.common.contracts.work_log import (
    Admitted,
    Archived,
    Assigned,
    AttemptFailed,
    Blacklisted,
    Cancelled,
    Ended,
    Expired,
    ExpiryReason,
    Fact,
    Paroled,
    PayloadKept,
    PayloadStored,
    Refused,
    Remembered,
    Requeued,
    RetryAt,
    Started,
)
from libs.common.contracts.work_marshaling import SERVER_PREFIX, WorkError, WorkStatus
from libs.common.contracts.work_requirements import NO_REQUIREMENTS
from services.work_marshaling.identity import payload_text
from services.work_marshaling.model import Attempt, ItemFact, Outcome, Spec, Submission, WorkItem

INLINE_BYTES = 4096
REFUSALS_KEPT = 32

AttemptFact = Assigned | Started | Expired | AttemptFailed


def apply(item: WorkItem | None, fact: ItemFact) -> WorkItem:
    """The item after the fact. Raises `ValueError` where the log contradicts itself."""
    if fact.fact == "admitted":
        return _admitted(fact)
    if item is None:
        raise ValueError(f"the log says {fact.fact} of {fact.work_id}, which was never admitted")
    match fact.fact:
        case "assigned" | "started" | "expired" | "attempt_failed":
            return _attempt_fact(item, fact)
        case _:
            return _item_fact(item, fact)


def _attempt_fact(item: WorkItem, fact: AttemptFact) -> WorkItem:
    match fact.fact:
        case "assigned":
            given = Attempt(
                number=fact.attempt,
                token=fact.token,
                node_id=fact.node_id,
                assigned_at=fact.at,
                despite=fact.despite,
            )
            return item._replace(status=WorkStatus.ASSIGNED, attempts=(*item.attempts, given))
        case "started":
            begun = _with_attempt(item.attempts, fact.attempt, started_at=fact.at)
            return item._replace(status=WorkStatus.RUNNING, attempts=begun)
        case "expired":
            return _expired(item, fact)
        case "attempt_failed":
            return _attempt_failed(item, fact)


def _item_fact(item: WorkItem, fact: RetryAt | Requeued | PayloadKept | PayloadStored | Cancelled | Ended) -> WorkItem:
    match fact.fact:
        case "ended":
            return _ended(item, fact)
        case "retry_at":
            return item._replace(status=WorkStatus.RETRYING, retry_at=fact.at)
        case "requeued":
            return item._replace(status=WorkStatus.PENDING, retry_at=None)
        case "payload_kept":
            return item._replace(spec=item.spec._replace(payload=payload_text(fact.payload).encode()))
        case "payload_stored":
            return item._replace(spec=item.spec._replace(payload_ref=fact.payload_ref))
        case "cancelled":
            return _cancelled(item, fact)


def _admitted(fact: Admitted) -> WorkItem:
    asked = fact.item
    needs = asked.requirements
    spec = Spec(
        work_type=asked.work_type,
        model_name=asked.model_name,
        priority=asked.priority,
        requirements=needs if needs is NO_REQUIREMENTS or needs != NO_REQUIREMENTS else NO_REQUIREMENTS,
        timeout_seconds=asked.timeout_seconds,
        deadline=asked.deadline,
        not_before=asked.not_before,
        max_attempts=fact.max_attempts,
        retry_delay_seconds=fact.retry_delay_seconds,
        labels=tuple(asked.labels.items()),
        submitter=asked.submitter,
        payload=None if fact.payload is None else fact.payload.encode(),
        payload_bytes=fact.payload_bytes,
        retry_of=asked.retry_of,
        payload_ref=asked.payload_ref,
    )
    return WorkItem(
        work_id=fact.work_id,
        sequence=fact.sequence,
        index=fact.index,
        submitted_at=fact.at,
        digest=fact.digest,
        spec=spec,
    )


def _with_attempt(attempts: tuple[Attempt, ...], number: int, **changes: Any) -> tuple[Attempt, ...]:
    return tuple(attempt._replace(**changes) if attempt.number == number else attempt for attempt in attempts)


def _expired(item: WorkItem, fact: Expired) -> WorkItem:
    attempts = _with_attempt(
        item.attempts,
        fact.attempt,
        ended_at=fact.at,
        outcome=Outcome.EXPIRED,
        error=WorkError(code=fact.reason.value, message=fact.detail),
        counted=fact.counted,
        died=fact.reason is ExpiryReason.DIED,
    )
    return item._replace(status=WorkStatus.PENDING, attempts=_without_old_refusals(attempts))


def _without_old_refusals(attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """An item that every node refuses must not grow without end."""
    refused = [attempt.number for attempt in attempts if not attempt.counted and not attempt.died]
    too_many = len(refused) - REFUSALS_KEPT
    if too_many <= 0:
        return attempts
    dropped = refused[:too_many]
    return tuple(attempt for attempt in attempts if attempt.number not in dropped)


def _attempt_failed(item: WorkItem, fact: AttemptFailed) -> WorkItem:
    changes: dict[str, object] = {"ended_at": fact.at, "outcome": Outcome.FAILED, "error": fact.error}
    changes |= {"out_seq": fact.out_seq, "counted": fact.counted, "died": not fact.counted}
    attempts = _with_attempt(item.attempts, fact.attempt, **changes, **_start(fact))
    return item._replace(status=WorkStatus.PENDING, attempts=attempts)


def _start(fact: AttemptFailed | Ended) -> dict[str, datetime]:
    """An attempt that was over before it was ever reported tells its start with its outcome."""
    return {} if fact.started_at is None else {"started_at": fact.started_at}


def _ended(item: WorkItem, fact: Ended) -> WorkItem:
    attempts = item.attempts
    if fact.status == "completed" and fact.attempt is not None:
        done = {"ended_at": fact.at, "outcome": Outcome.COMPLETED, "error": None, "out_seq": fact.out_seq}
        attempts = _with_attempt(attempts, fact.attempt, **done, **_start(fact))
    return item._replace(
        attempts=_without_live(attempts, fact.at),
        ended_at=fact.at,
        retry_at=None,
        status=WorkStatus(fact.status),
        error=fact.error,
        out_seq=fact.out_seq,
        result_bytes=fact.result_bytes,
    )


def _cancelled(item: WorkItem, fact: Cancelled) -> WorkItem:
    return item._replace(
        attempts=_without_live(item.attempts, fact.at),
        ended_at=fact.at,
        retry_at=None,
        status=WorkStatus.CANCELLED,
        error=WorkError(code="cancelled", message=fact.reason, retryable=False),
    )


def _without_live(attempts: tuple[Attempt, ...], at: datetime) -> tuple[Attempt, ...]:
    """Those of an ended item: nobody holds a lease any more."""
    return tuple(
        attempt._replace(outcome=Outcome.CANCELLED, ended_at=at) if attempt.outcome is None else attempt
        for attempt in attempts
    )


def without_payload(item: WorkItem) -> WorkItem:
    """Once the archive was told of it."""
    return item._replace(spec=item.spec._replace(payload=None))


def facts_of(item: WorkItem) -> Iterator[ItemFact]:
    """The shortest story that ends in this item."""
    yield _told_admission(item)
    payload = item.spec.payload
    if payload is not None and len(payload) > INLINE_BYTES:
        yield PayloadKept(work_id=item.work_id, payload=json.loads(payload), payload_bytes=len(payload))
    for attempt in item.attempts:
        yield from _told_attempt(item.work_id, attempt)
    if item.retry_at is not None:
        yield RetryAt(work_id=item.work_id, at=item.retry_at)
    if item.ended_at is not None:
        yield _told_end(item, item.ended_at)


def _told_admission(item: WorkItem) -> Admitted:
    spec = item.spec
    return Admitted(
        work_id=item.work_id,
        sequence=item.sequence,
        index=item.index,
        at=item.submitted_at,
        item=asked_for(item),
        payload=None if spec.payload is None or len(spec.payload) > INLINE_BYTES else spec.payload.decode(),
        payload_bytes=spec.payload_bytes,
        digest=item.digest,
        max_attempts=spec.max_attempts,
        retry_delay_seconds=spec.retry_delay_seconds,
    )


def asked_for(item: WorkItem) -> Submission:
    """What was submitted, without its payload and with the defaults filled in."""
    spec = item.spec
    return Submission(
        work_id=None if item.work_id.startswith(SERVER_PREFIX) else item.work_id,
        work_type=spec.work_type,
        model_name=spec.model_name,
        priority=spec.priority,
        requirements=spec.requirements,
        timeout_seconds=spec.timeout_seconds,
        deadline=spec.deadline,
        not_before=spec.not_before,
        labels=dict(spec.labels),
        submitter=spec.submitter,
        retry_of=spec.retry_of,
        payload_ref=spec.payload_ref,
        max_attempts=spec.max_attempts,
        retry_delay_seconds=spec.retry_delay_seconds,
    )


def _told_attempt(work_id: str, attempt: Attempt) -> Iterator[ItemFact]:
    number, error, ended_at = attempt.number, attempt.error, attempt.ended_at
    yield Assigned(
        work_id=work_id,
        attempt=number,
        node_id=attempt.node_id,
        token=attempt.token,
        at=attempt.assigned_at,
        despite=attempt.despite,
    )
    if attempt.started_at is not None:
        yield Started(work_id=work_id, attempt=number, at=attempt.started_at)
    if attempt.outcome is Outcome.COMPLETED and not attempt.counted and ended_at is not None:
        # The node refused it, or seemed dead, and did it all the same: that it is not counted must stay.
        reason = ExpiryReason.DIED if attempt.died else ExpiryReason.REFUSED
        yield Expired(work_id=work_id, attempt=number, at=ended_at, reason=reason, detail="", counted=False)
    if ended_at is None or error is None:
        return
    if attempt.outcome is Outcome.EXPIRED:
        yield Expired(
            work_id=work_id,
            attempt=number,
            at=ended_at,
            reason=ExpiryReason(error.code),
            detail=error.message,
            counted=attempt.counted,
        )
    elif attempt.outcome is Outcome.FAILED:
        yield AttemptFailed(
            work_id=work_id,
            attempt=number,
            at=ended_at,
            error=error,
            out_seq=attempt.out_seq or 0,
            counted=attempt.counted,
        )


def _told_end(item: WorkItem, at: datetime) -> ItemFact:
    if item.status is WorkStatus.CANCELLED:
        return Cancelled(work_id=item.work_id, at=at, reason=item.error.message if item.error else "")
    done = next((attempt for attempt in item.attempts if attempt.outcome is Outcome.COMPLETED), None)
    return Ended.model_validate(
        {
            "work_id": item.work_id,
            "at": at,
            "status": item.status.value,
            "attempt": done.number if done else None,
            "out_seq": item.out_seq,
            "result_bytes": item.result_bytes,
            "error": item.error,
        }
    )


def weight(fact: Fact) -> int:
    """How many bytes the fact takes in the log, or a little more."""
    match fact:
        case Admitted():
            return 1024 + 2 * envelope_bytes(fact.item) + (fact.payload_bytes * 2 if fact.payload is not None else 0)
        case PayloadKept():
            return 512 + fact.payload_bytes * 3 // 2
        case AttemptFailed(error=error):
            return 512 + 6 * len(error.message)
        case Ended(error=WorkError(message=message)):
            return 512 + 6 * len(message)
        case Remembered():
            return 128 + len(fact.digests)
        case Archived(work_ids=work_ids):
            return 128 + sum(len(work_id) + 4 for work_id in work_ids)
        case Refused() | Expired() | Cancelled() | Blacklisted() | Paroled():
            return 4096
    return 512


def envelope_bytes(item: Submission) -> int:
    """The size of what is free to grow in an item beside its payload: labels, requirements."""
    asked = item.requirements
    if asked is NO_REQUIREMENTS and not item.labels:
        return 0
    named = (*(asked.node_ids or ()), *asked.prefer_node_ids, *asked.avoid_node_ids)
    pairs = (*item.labels.items(), *asked.labels.items())
    return sum(len(name) + 3 for name in named) + sum(6 * (len(key) + len(value)) + 6 for key, value in pairs)
