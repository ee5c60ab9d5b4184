"""How nodes behave: who fails fast gets less work at once, who fails often is blacklisted.

*Rate.* Of the attempts at a node that ended within the last `window_seconds` and say something about the node, so many
failed. A few failures prove little: what counts is the lower bound of Wilson's interval for the true rate at 95 %
(E. B. Wilson, Probable Inference, Journal of the American Statistical Association 22, 1927, 209-212). Above
`failure_rate` the node is blacklisted, or only for one model when that one model brought it there. From 4 failures
in a row on it is above one half. A death of the node counts as one failure, and so does a standstill, however many
attempts it ended; a death counts for nothing where an item was aboard that is suspected of it.

*Terms.* The first one is `term_seconds`, each further one twice as long, up to `term_most_seconds`; a day of good
conduct after the parole and all is forgotten.

*Quota.* A node that fails an attempt within `fast_seconds` may hold half as many as before, one at least; with each
success one more (additive increase, multiplicative decrease: Chiu and Jain, 1989). On parole it begins with one.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from libs.common.contracts.work_log import AttemptFailed, Blacklisted, Ended, Expired, ExpiryReason, Paroled
from libs.common.contracts.work_marshaling import EXTERNAL
from services.work_marshaling.model import Attempt, ConductRules, WorkItem
from services.work_marshaling.pace import Paces

NODE_FAULTS = frozenset(
    {
        *("engine_unavailable", "engine_error", "internal"),
        *("containers_unavailable", "container_lost", "no_work_folder"),
    }
)
NODE_FAULT_PREFIX = "node_"
Z = 1.96
PARTS = 20
APART_SECONDS = 10.0
FORGIVEN = timedelta(days=1)

AttemptEnd = Ended | AttemptFailed | Expired

Key = tuple[str, str | None]
"""A node, or (with a model) a node as far as this model goes."""


def wilson_lower(failures: int, attempts: int) -> float:
    """The lower end of Wilson's interval for the rate behind so many failures."""
    if attempts == 0:
        return 0.0
    rate, square = failures / attempts, Z * Z / attempts
    spread = Z * math.sqrt(rate * (1 - rate) / attempts + square / (4 * attempts))
    return max(0.0, (rate + square / 2 - spread) / (1 + square))


def is_node_fault(code: str) -> bool:
    """Whether a worker's error says something about the node. Its own errors and those of the item say nothing."""
    return code in NODE_FAULTS or code.startswith(NODE_FAULT_PREFIX)


@dataclass(slots=True)
class _Record:
    """What ended lately, counted by parts of the window: when each began, how many ended, how many of them failed."""

    part_seconds: float
    parts: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, at: float, failed: bool) -> None:
        if self.parts and at - self.parts[-1][0] < self.part_seconds:
            began, ends, failures = self.parts.pop()
            self.parts.append((began, ends + 1, failures + failed))
        else:
            self.parts.append((at, 1, int(failed)))

    def forget(self, before: float) -> None:
        while self.parts and self.parts[0][0] < before:
            self.parts.popleft()

    @property
    def counts(self) -> tuple[int, int]:
        """Failures, and ends in all."""
        return sum(part[2] for part in self.parts), sum(part[1] for part in self.parts)


class Conduct:
    """Counts by the times of the facts."""

    def __init__(self, rules: ConductRules) -> None:
        self._rules = rules
        self._records: dict[Key, _Record] = {}
        self._befell: dict[tuple[str, ExpiryReason], float] = {}
        self._quotas: dict[str, int] = {}
        self._trouble: dict[str, int] = {}
        self.failures: Counter[str] = Counter()
        self.paces = Paces()

    def trouble(self, node_id: str) -> int:
        """From 0 (none) to 9, by how often it surely failed of late; as of the last `due`."""
        return self._trouble.get(node_id, 0)

    def quota(self, node_id: str) -> int | None:
        """How many attempts a node may hold; None: as many as it has slots."""
        return self._quotas.get(node_id)

    def hear(self, item: WorkItem, fact: AttemptEnd, slots: int) -> str | None:
        """Count the end of an attempt. Which node it says something about, if any. `slots`: of that node."""
        if fact.attempt is None:
            return None
        attempt = next((each for each in item.attempts if each.number == fact.attempt), None)
        if attempt is None or attempt.node_id == EXTERNAL:
            return None
        failed = self._judged(item, attempt, fact)
        if failed is None:
            return None
        seconds, at = (fact.at - attempt.assigned_at).total_seconds(), fact.at.timestamp()
        if not failed:
            self.paces.took(attempt.node_id, (item.spec.work_type, item.spec.model_name), seconds, at)
        self._count(attempt.node_id, item.spec.model_name, at, failed)
        fast = seconds <= self._rules.fast_seconds
        self._adjust(attempt.node_id, failed, fast, slots)
        return attempt.node_id

    def _judged(self, item: WorkItem, attempt: Attempt, fact: AttemptEnd) -> bool | None:
        """Whether the node failed; None when this says nothing about it."""
        if isinstance(fact, Ended):
            return False if fact.status == "completed" else None
        died = isinstance(fact, AttemptFailed) and not fact.counted
        if isinstance(fact, Expired):
            if fact.reason is ExpiryReason.LEASE:
                return self._another(attempt.node_id, ExpiryReason.LEASE, fact.at.timestamp()) or None
            died = fact.reason is ExpiryReason.DIED
        if died:
            suspected = item.deaths > 0
            return (not suspected and self._another(attempt.node_id, ExpiryReason.DIED, fact.at.timestamp())) or None
        return True if isinstance(fact, AttemptFailed) and is_node_fault(fact.error.code) else None

    def _another(self, node_id: str, what: ExpiryReason, at: float) -> bool:
        """A death or a standstill ends all that is aboard, and counts once: what comes soon after is the same one."""
        before = self._befell.get((node_id, what), -math.inf)
        if at - before < APART_SECONDS:
            return False
        self._befell[node_id, what] = at
        return True

    def _count(self, node_id: str, model_name: str | None, at: float, failed: bool) -> None:
        self.failures[node_id] += failed
        for key in {(node_id, None), (node_id, model_name)}:
            record = self._records.get(key)
            if record is None:
                record = self._records[key] = _Record(self._rules.window_seconds / PARTS)
            record.add(at, failed)

    def _adjust(self, node_id: str, failed: bool, fast: bool, slots: int) -> None:
        quota = self._quotas.get(node_id)
        if failed and fast:
            self._quotas[node_id] = max(1, min(slots, slots if quota is None else quota) // 2)
        elif not failed and quota is not None:
            if quota + 1 >= slots:
                del self._quotas[node_id]
            else:
                self._quotas[node_id] = quota + 1

    def limit(self, node_id: str) -> None:
        """It is listed, or on parole: one at a time."""
        self._quotas[node_id] = 1

    def forget(self, node_id: str) -> None:
        """It is gone; what its attempts came to is forgotten by itself."""
        for what in (ExpiryReason.DIED, ExpiryReason.LEASE):
            self._befell.pop((node_id, what), None)
        self._quotas.pop(node_id, None)
        self.failures.pop(node_id, None)
        self.paces.forget(node_id)

    def due(self, known: Mapping[Key, Blacklisted | Paroled], now: datetime) -> Iterator[Blacklisted | Paroled]:
        """Who is to be listed, and whose term is over."""
        for key, fact in known.items():
            if isinstance(fact, Blacklisted) and fact.until is not None and fact.until <= now:
                yield parole(key, fact, now, by="term", reason="the term is over")
        self._trouble.clear()
        before = now.timestamp() - self._rules.window_seconds
        for key in sorted(self._records, key=lambda key: (key[1] is None, key)):  # models first
            record = self._records.get(key)
            if record is None:
                continue
            record.forget(before)
            failures, ends = record.counts
            if not ends:
                del self._records[key]
                continue
            bound, last = wilson_lower(failures, ends), known.get(key)
            if key[1] is None and bound >= 0.1:
                self._trouble[key[0]] = int(10 * bound)
            if not isinstance(last, Blacklisted) and bound > self._rules.failure_rate:
                yield self._listing(key, failures, ends, last, now)

    def _listing(
        self, key: Key, failures: int, ends: int, last: Blacklisted | Paroled | None, now: datetime
    ) -> Blacklisted:
        """What led to it counts no more: after the parole only what comes then does."""
        strikes = 1 if last is None or now - last.at > FORGIVEN else last.strikes + 1
        term = min(self._rules.term_most_seconds, self._rules.term_seconds * 2.0 ** (strikes - 1))
        for each in (key, (key[0], None)):
            self._records.pop(each, None)
        return Blacklisted(
            node_id=key[0],
            model_name=key[1],
            at=now,
            until=now + timedelta(seconds=term),
            reason=f"{failures} of its last {ends} attempts failed",
            failure_rate=round(wilson_lower(failures, ends), 3),
            strikes=strikes,
            by="rate",
        )


def parole(key: Key, last: Blacklisted, now: datetime, *, by: str, reason: str) -> Paroled:
    return Paroled.model_validate(
        {"node_id": key[0], "model_name": key[1], "at": now, "by": by, "reason": reason, "strikes": last.strikes}
    )
