"""The life of an item: what happens to it is decided here once, as facts; applying facts is all that replay does."""

from datetime import datetime, timedelta

from libs.common.contracts.work_log import (
    Admitted,
    Assigned,
    AttemptFailed,
    Cancelled,
    Ended,
    Expired,
    ExpiryReason,
    Fact,
    Ignored,
    IgnoredReason,
    Refused,
    Repeated,
    Requeued,
    RetryAt,
    Started,
)
from libs.common.contracts.work_marshaling import AGENT_RESTARTED, WorkError, WorkStatus
from services.work_marshaling.model import (
    Attempt,
    Cancel,
    Completed,
    DeadlinePassed,
    Effect,
    Event,
    Failed,
    Given,
    ItemFact,
    LeaseExpired,
    NodeRefused,
    Offer,
    PayloadLost,
    Policy,
    Progressed,
    RetryDue,
    Stop,
    Submitted,
    TellEnd,
    WorkItem,
)

POISON = "poison"
LEASE_LOST = WorkError(code="lease_expired", message="The node stopped renewing the lease.")
NODE_DIED = WorkError(code="died", message="The node died, or went silent, while this ran.")
TOOK_TOO_LONG = WorkError(code="timed_out", message="The attempt took longer than `timeout_seconds`.")
DEADLINE = WorkError(code="deadline_passed", message="The deadline passed before the item was done.", retryable=False)
PAYLOAD_LOST = WorkError(code="payload_lost", message="The payload is no longer in the stream.", retryable=False)


def decide(item: WorkItem | None, event: Event, policy: Policy, now: datetime, chance: float) -> tuple[Fact, ...]:
    """What follows from an event. Nothing (no facts) is a normal answer: the event came too late or says nothing new.

    `chance` is a random number in [0, 1), for the jitter of a retry.
    """
    match event:
        case Submitted():
            return _submitted(item, event, policy)
        case Completed():
            return _completed(item, event, now)
        case Failed():
            return _failed(item, event, policy, now, chance)
    if item is None or not item.open:
        return ()
    return _open(item, event, policy, now, chance)


def _open(item: WorkItem, event: Event, policy: Policy, now: datetime, chance: float) -> tuple[Fact, ...]:
    live = item.live
    match event:
        case Given() if item.status is WorkStatus.PENDING:
            return (_assigned(item, event, now),)
        case Progressed(token=token) if live and live.token == token and item.status is WorkStatus.ASSIGNED:
            return (Started(work_id=item.work_id, attempt=live.number, at=now),)
        case LeaseExpired(token=token) if live and live.token == token:
            return _lease_expired(item, live, event, policy, now, chance)
        case NodeRefused(token=token, detail=detail) if live and live.token == token:
            return (_refused(item, live, detail, now),)
        case RetryDue(at=at) if item.status is WorkStatus.RETRYING and item.retry_at == at:
            return (Requeued(work_id=item.work_id),)
        case DeadlinePassed():
            return (Ended(work_id=item.work_id, at=now, status="failed", error=DEADLINE),)
        case PayloadLost():
            return (Ended(work_id=item.work_id, at=now, status="failed", error=PAYLOAD_LOST),)
        case Cancel(reason=reason):
            return (Cancelled(work_id=item.work_id, at=now, reason=reason),)
    return ()


def _submitted(item: WorkItem | None, event: Submitted, policy: Policy) -> tuple[Fact, ...]:
    known = event.forgotten_digest if item is None else item.digest
    if known is None:
        return (_admitted(event, policy),)
    if item is not None and item.order == (event.sequence, event.index):
        return ()  # read again after a restart
    where = {"work_id": event.work_id, "sequence": event.sequence, "index": event.index}
    if known == event.digest:
        return (Repeated.model_validate(where),)
    reason = "this work_id belongs to an item with other content"
    return (Refused.model_validate(where | {"code": "conflict", "reason": reason}),)


def _admitted(event: Submitted, policy: Policy) -> Admitted:
    item = event.item
    delay = policy.retry_delay_seconds if item.retry_delay_seconds is None else item.retry_delay_seconds
    return Admitted(
        work_id=event.work_id,
        sequence=event.sequence,
        index=event.index,
        at=event.at,
        item=item,
        payload=event.payload,
        payload_bytes=event.payload_bytes,
        digest=event.digest,
        max_attempts=item.max_attempts or policy.retry_max + 1,
        retry_delay_seconds=delay,
    )


def _assigned(item: WorkItem, event: Given, now: datetime) -> Assigned:
    number = item.attempts[-1].number + 1 if item.attempts else 1
    return Assigned(
        work_id=item.work_id,
        attempt=number,
        node_id=event.node_id,
        token=event.token,
        at=now,
        despite=event.despite,
    )


def _completed(item: WorkItem | None, event: Completed, now: datetime) -> tuple[Fact, ...]:
    attempt = _named_attempt(item, event.token)
    if item is None or not isinstance(attempt, Attempt):
        return (_ignored(event, attempt),)
    if not item.open:
        # Of a message with many outcomes some were known before a restart, and it is read again.
        return () if attempt.out_seq == event.out_seq else (_ignored(event, IgnoredReason.LATE),)
    return (
        Ended(
            work_id=item.work_id,
            at=now,
            status="completed",
            attempt=attempt.number,
            out_seq=event.out_seq,
            result_bytes=event.result_bytes,
            started_at=_started_at(attempt, event.started_at, now),
        ),
    )


def _failed(item: WorkItem | None, event: Failed, policy: Policy, now: datetime, chance: float) -> tuple[Fact, ...]:
    attempt = _named_attempt(item, event.token)
    if item is None or not isinstance(attempt, Attempt):
        return (_ignored(event, attempt),)
    if attempt is not item.live:
        return (_ignored(event, IgnoredReason.LATE),)
    died = event.error.code == AGENT_RESTARTED
    told = AttemptFailed(
        work_id=item.work_id,
        attempt=attempt.number,
        at=now,
        error=event.error,
        out_seq=event.out_seq,
        started_at=_started_at(attempt, event.started_at, now),
        counted=not died,
    )
    if died:
        return told, _after_death(item, attempt, policy, now, chance)
    return told, _what_next(item, event.error, policy, now, chance)


def _started_at(attempt: Attempt, told: datetime | None, now: datetime) -> datetime | None:
    """When the attempt began, by its worker's clock as far as ours allows it; what is known already stays."""
    if attempt.started_at is not None or told is None:
        return attempt.started_at
    return max(attempt.assigned_at, min(told, now))


def _named_attempt(item: WorkItem | None, token: str | None) -> Attempt | IgnoredReason:
    """The attempt an outcome speaks of. Only an outside worker may leave the token out."""
    if item is None:
        return IgnoredReason.UNKNOWN_ITEM
    if token is not None:
        return item.attempt_with(token) or IgnoredReason.UNKNOWN_TOKEN
    if item.spec.external and item.attempts:
        return item.attempts[-1]
    return IgnoredReason.NO_TOKEN


def _ignored(event: Completed | Failed, reason: Attempt | IgnoredReason) -> Ignored:
    why = reason if isinstance(reason, IgnoredReason) else IgnoredReason.LATE
    return Ignored(work_id=event.work_id, out_seq=event.out_seq, reason=why)


def _lease_expired(
    item: WorkItem, live: Attempt, event: LeaseExpired, policy: Policy, now: datetime, chance: float
) -> tuple[Fact, ...]:
    if event.died and not event.timeout:
        died = Expired(
            work_id=item.work_id,
            attempt=live.number,
            at=now,
            reason=ExpiryReason.DIED,
            detail=NODE_DIED.message,
            counted=False,
        )
        return died, _after_death(item, live, policy, now, chance)
    reason, error = (ExpiryReason.TIMEOUT, TOOK_TOO_LONG) if event.timeout else (ExpiryReason.LEASE, LEASE_LOST)
    expired = Expired(work_id=item.work_id, attempt=live.number, at=now, reason=reason, detail=error.message)
    return expired, _what_next(item, error, policy, now, chance)


def _refused(item: WorkItem, live: Attempt, detail: str, now: datetime) -> Expired:
    return Expired(
        work_id=item.work_id,
        attempt=live.number,
        at=now,
        reason=ExpiryReason.REFUSED,
        detail=detail[:512],
        counted=False,
    )


def _what_next(item: WorkItem, error: WorkError, policy: Policy, now: datetime, chance: float) -> RetryAt | Ended:
    """After the live attempt came to nothing: another one later, or the end."""
    tried = item.counted_attempts
    if not error.retryable or tried >= item.spec.max_attempts:
        status = "dead" if error.retryable else "failed"
        number = item.attempts[-1].number
        return Ended.model_validate(
            {"work_id": item.work_id, "at": now, "status": status, "attempt": number, "error": error}
        )
    delay = retry_delay(item.spec.retry_delay_seconds, tried, policy, chance)
    return RetryAt(work_id=item.work_id, at=now + timedelta(seconds=delay))


def _after_death(item: WorkItem, live: Attempt, policy: Policy, now: datetime, chance: float) -> RetryAt | Ended:
    """The item's node died. Most items that were aboard had no part in it; one that is always aboard is poison."""
    killed = sorted(item.killed | {live.node_id})
    deaths = item.deaths + 1
    if len(killed) < policy.poison_nodes and deaths < policy.deaths_most:
        delay = retry_delay(item.spec.retry_delay_seconds, deaths, policy, chance)
        return RetryAt(work_id=item.work_id, at=now + timedelta(seconds=delay))
    message = f"Nodes died {deaths} times while this ran: {', '.join(killed)}"
    error = WorkError(code=POISON, message=message[:4096], retryable=False)
    return Ended(work_id=item.work_id, at=now, status="dead", attempt=live.number, error=error)


def retry_delay(base_seconds: float, tried: int, policy: Policy, chance: float) -> float:
    """Exponential backoff with full jitter, in seconds: anywhere between nothing and twice as long each time."""
    return chance * min(policy.retry_delay_most_seconds, base_seconds * 2.0 ** (tried - 1))


def longest_retry_delay(item: WorkItem, policy: Policy) -> float:
    """How long this item's present retry may have been put off at most, in seconds."""
    tried = max(1, item.counted_attempts, item.deaths)
    return retry_delay(item.spec.retry_delay_seconds, tried, policy, 1.0)


def effects(before: WorkItem | None, fact: ItemFact) -> tuple[Effect, ...]:
    """What has to be done in the world once the fact is on disk."""
    live = before.live if before is not None else None
    match fact.fact:
        case "assigned":
            return (Offer(work_id=fact.work_id, node_id=fact.node_id, token=fact.token),)
        case "expired" if live and fact.reason is ExpiryReason.TIMEOUT:
            return (Stop(node_id=live.node_id, token=live.token, reason="timed out"),)
        case "ended":
            stop = _stop(live, "ended otherwise") if live and live.number != fact.attempt else ()
            return (TellEnd(work_id=fact.work_id), *stop)
        case "cancelled":
            return (TellEnd(work_id=fact.work_id), *_stop(live, "cancelled"))
    return ()


def _stop(live: Attempt | None, reason: str) -> tuple[Effect, ...]:
    return () if live is None else (Stop(node_id=live.node_id, token=live.token, reason=reason),)
