"""What the leader knows: every open item, the recently ended ones, how far the inputs were read. Rebuilt from the log.

Items are never changed, only replaced, so that a shallow copy of them is a consistent picture of one instant.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from libs.common.contracts.log import LogEpoch, RecordKind
from libs.common.contracts.streams import WORK_IN, WORK_OUT
from libs.common.contracts.work_log import (
    Archived,
    Blacklisted,
    Ended,
    Fact,
    IgnoredReason,
    Paroled,
    Refused,
    Repeated,
    WorkRecord,
)
from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.contracts.work_requirements import NO_REQUIREMENTS, Requirements
from services.work_marshaling.facts import apply, without_payload
from services.work_marshaling.machine import POISON
from services.work_marshaling.model import ItemFact, Refusal, WorkItem
from services.work_marshaling.remembered import RememberedIds

REFUSALS_KEPT = 10_000
PER_FACT = 5_000
CAME_TO_NOTHING = frozenset({WorkStatus.FAILED, WorkStatus.DEAD})
ALIASES_KEPT = 100_000
PAROLE_KEPT = timedelta(days=1)


class Change(NamedTuple):
    """What one fact did to one item."""

    fact: ItemFact
    before: WorkItem | None
    after: WorkItem


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one instant."""

    items: tuple[WorkItem, ...]
    others: tuple[Fact, ...]
    totals: Mapping[str, int]
    in_seq: int
    out_seq: int


class Memory:
    """`ended_most` and `ended_keep` bound how many ended items are kept at hand, and for how long.

    `log_seq` is the place in WORK_LOG of the newest record. `unarchived` are the ended items that WORK_DONE does not
    have yet, in the order of their ends: they stay, whatever the bounds say.
    """

    def __init__(self, remembered: RememberedIds, *, ended_most: int, ended_keep: timedelta) -> None:
        self._remembered = remembered
        self._ended_most = ended_most
        self._ended_keep = ended_keep
        self.origins: Mapping[str, datetime] = {}
        self._requirements: dict[str, Requirements] = {}
        self.orphans: set[str] = set()
        self.log_seq = 0
        self._clear()

    def _clear(self) -> None:
        self.items: dict[str, WorkItem] = {}
        self.conduct: dict[tuple[str, str | None], Blacklisted | Paroled] = {}
        self.in_seq = 0
        self.out_seq = 0
        self.totals: Counter[str] = Counter()
        self.by_status: Counter[WorkStatus] = Counter()
        self._far: dict[str, None] = {}
        self.unarchived: dict[str, None] = {}
        self._ended: deque[str] = deque()
        self._aliases: OrderedDict[int, str] = OrderedDict()
        self._refusals: OrderedDict[tuple[int, int], Refusal] = OrderedDict()

    # Reading

    def find(self, sequence: int) -> str | None:
        """The id of the item that was submitted under this sequence of WORK_IN by its submitter's own id."""
        return self._aliases.get(sequence)

    def told(self, work_id: str, token: str) -> bool:
        """Whether the worker of this attempt told how it ended."""
        item = self.items.get(work_id)
        attempt = None if item is None else item.attempt_with(token)
        return attempt is not None and attempt.out_seq is not None

    def refusal(self, sequence: int, index: int = 0) -> Refusal | None:
        return self._refusals.get((sequence, index))

    def forgotten_digest(self, work_id: str) -> str | None:
        return self._remembered.content_of(work_id)

    @property
    def open_items(self) -> int:
        return len(self.items) - len(self._ended)

    @property
    def ended_items(self) -> int:
        return len(self._ended)

    @property
    def remembered_ids(self) -> int:
        return len(self._remembered)

    def far_items(self) -> Iterator[WorkItem]:
        """Items whose payload lies in WORK_IN only and is needed there, about in the order of their submission."""
        return (self.items[work_id] for work_id in tuple(self._far))

    def oldest_end(self) -> datetime | None:
        """When the item ended that is at hand longest."""
        return self.items[self._ended[0]].ended_at if self._ended else None

    def oldest_result(self) -> int | None:
        """The sequence in WORK_OUT from which on results may still be asked for."""
        ended = (self.items[work_id] for work_id in self._ended)
        return next((item.out_seq for item in ended if item.out_seq is not None), None)

    @property
    def has_dropped_ids(self) -> bool:
        """Whether there were ids of ended items that are remembered no longer."""
        return self._remembered.incomplete

    # Facts

    def take(self, fact: Fact) -> Change | None:
        """Apply a fact that was decided or is replayed.

        Told apart by their names: pydantic answers `isinstance` slowly, and no fact is as frequent as those of items.
        """
        match fact.fact:
            case "repeated":
                self._alias(fact.sequence, fact.work_id)
                self.totals["repeated"] += 1
            case "refused":
                self._refuse(fact)
            case "ignored":
                self.totals["late" if fact.reason is IgnoredReason.LATE else "ignored"] += 1
            case "remembered":
                self._remembered.restore(fact)
            case "archived":
                self._archived(fact)
            case "blacklisted" | "paroled":
                self.conduct[(fact.node_id, fact.model_name)] = fact
            case _:
                return self._change(fact)
        return None

    def _change(self, fact: ItemFact) -> Change:
        before = self.items.get(fact.work_id)
        after = apply(before, fact)
        if fact.fact == "admitted":
            after = self._enter(after)
        self.items[after.work_id] = after
        self.by_status[after.status] += 1
        if before is not None:
            self.by_status[before.status] -= 1
        far = after.spec.payload is None and after.spec.payload_ref is None
        if far and (after.open or after.status in CAME_TO_NOTHING):
            self._far[after.work_id] = None
        else:
            self._far.pop(after.work_id, None)
        ended_before = before is not None and not before.open
        if ended_before and after.open:
            self._ended.remove(after.work_id)  # an id that its submitter may use again
        if not (after.open or ended_before):
            self.unarchived[after.work_id] = None
            self._ended.append(after.work_id)
            self.orphans.discard(after.work_id)
            self.totals[fact.status if isinstance(fact, Ended) else "cancelled"] += 1
            if after.error is not None and after.error.code == POISON:
                self.totals["poisonous"] += 1
        return Change(fact, before, after)

    def _archived(self, fact: Archived) -> None:
        for work_id in fact.work_ids:
            self.unarchived.pop(work_id, None)
            self._far.pop(work_id, None)
            item = self.items.get(work_id)
            if item is not None and item.spec.payload is not None:
                self.items[work_id] = without_payload(item)

    def _enter(self, item: WorkItem) -> WorkItem:
        """Most items ask for the same: they share one object that says so."""
        self.totals["admitted"] += 1
        if item.digest:
            self._alias(item.sequence, item.work_id)
        asked = item.spec.requirements
        if asked is NO_REQUIREMENTS:
            return item
        shared = self._requirements.setdefault(repr(asked), asked)
        if len(self._requirements) > REFUSALS_KEPT:
            self._requirements.clear()
        return item._replace(spec=item.spec._replace(requirements=shared)) if shared is not asked else item

    def _alias(self, sequence: int, work_id: str) -> None:
        self._aliases[sequence] = work_id
        if len(self._aliases) > ALIASES_KEPT + len(self.items):
            self._aliases.popitem(last=False)

    def _refuse(self, fact: Refused) -> None:
        self._refusals[(fact.sequence, fact.index)] = Refusal(code=fact.code, reason=fact.reason, work_id=fact.work_id)
        self.totals["refused"] += 1
        if len(self._refusals) > REFUSALS_KEPT:
            self._refusals.popitem(last=False)

    # Replay

    def begin_epoch(self, epoch: LogEpoch) -> None:
        self.enter_streams(epoch.origins)

    def enter_streams(self, origins: Mapping[str, datetime]) -> None:
        """A stream that was made anew is read from its start; what still lay in the old one is lost."""
        before, self.origins = self.origins, dict(origins)
        if WORK_IN.name in before and before[WORK_IN.name] != origins.get(WORK_IN.name):
            self.in_seq = 0
            self._aliases.clear()
            self._refusals.clear()
            self.orphans.update(item.work_id for item in self.items.values() if item.open and item.spec.payload is None)
        if WORK_OUT.name in before and before[WORK_OUT.name] != origins.get(WORK_OUT.name):
            self.out_seq = 0

    def apply(self, record: WorkRecord, sequence: int) -> None:
        self.log_seq = sequence
        self._apply(record)

    def _apply(self, record: WorkRecord) -> None:
        for fact in record.facts:
            self.take(fact)
        self.in_seq, self.out_seq = record.in_seq, record.out_seq

    def begin_checkpoint(self) -> None:
        self._clear()

    def restore(self, piece: WorkRecord) -> None:
        self._apply(piece)
        if piece.kind is RecordKind.DONE:
            self.totals = Counter(piece.totals)
            self._ended = deque(sorted(self._ended, key=self._ended_at))

    def _ended_at(self, work_id: str) -> float:
        ended_at = self.items[work_id].ended_at
        return 0.0 if ended_at is None else ended_at.timestamp()

    # Bounds

    def forget(self, now: datetime) -> None:
        """Let go of ended items that are too many or too old; ids of submitters stay remembered."""
        while self._ended and self._too_much(self.items[self._ended[0]], now):
            item = self.items.pop(self._ended.popleft())
            self.by_status[item.status] -= 1
            if item.digest:
                self._aliases.pop(item.sequence, None)
                self._remembered.remember(item.work_id, item.digest, now)
        self._remembered.forget(now)
        self.conduct = {
            key: fact
            for key, fact in self.conduct.items()
            if isinstance(fact, Blacklisted) or now - fact.at <= PAROLE_KEPT
        }

    def _too_much(self, item: WorkItem, now: datetime) -> bool:
        if item.work_id in self.unarchived or self._half_read(item) or self._half_told(item):
            return False
        too_old = item.ended_at is not None and now - item.ended_at > self._ended_keep
        return too_old or len(self._ended) > self._ended_most

    def _half_read(self, item: WorkItem) -> bool:
        """Its batch was not read to the end: after a restart it is read again, and must find the item."""
        made = self.origins.get(WORK_IN.name)
        return item.sequence > self.in_seq and (made is None or item.submitted_at >= made)

    def _half_told(self, item: WorkItem) -> bool:
        """The same for the message with its outcome, which may hold many."""
        if item.out_seq is None or item.out_seq <= self.out_seq or item.ended_at is None:
            return False
        made = self.origins.get(WORK_OUT.name)
        return made is None or item.ended_at >= made

    def _told_archived(self) -> Iterator[Archived]:
        archived = tuple(work_id for work_id in self._ended if work_id not in self.unarchived)
        for start in range(0, len(archived), PER_FACT):
            yield Archived(work_ids=archived[start : start + PER_FACT])

    def snapshot(self) -> Snapshot:
        refusals = tuple(
            Refused(sequence=sequence, index=index, work_id=refusal.work_id, code=refusal.code, reason=refusal.reason)
            for (sequence, index), refusal in self._refusals.items()
        )
        items = self.items
        aliases = tuple(
            Repeated(work_id=work_id, sequence=sequence)
            for sequence, work_id in self._aliases.items()
            if work_id not in items or items[work_id].sequence != sequence
        )
        others: tuple[Fact, ...] = (
            *refusals,
            *aliases,
            *self._remembered.facts(),
            *self._told_archived(),
            *self.conduct.values(),
        )
        return Snapshot(tuple(items.values()), others, dict(self.totals), self.in_seq, self.out_seq)
