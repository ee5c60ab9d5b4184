"""What can be asked of the queue, by either door."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from libs.common.bus.codec import encode, malformed
from libs.common.clock import Clock
from libs.common.contracts.base import ErrorBody, Message
from libs.common.contracts.streams import INLINE_MOST_BYTES
from libs.common.contracts.work_asked import AskedItem
from libs.common.contracts.work_log import Blacklisted
from libs.common.contracts.work_marshaling import (
    CancelWork,
    SubmitAnswer,
    SubmitAnswers,
    SubmitMany,
    WorkAccepted,
    WorkLookup,
    WorkStats,
    WorkStatus,
    WorkView,
)
from libs.common.contracts.work_records import Finished
from libs.common.contracts.work_requirements import Requirements
from libs.common.errors import Conflict, Malformed, MeshError, NotFound, Unavailable
from libs.common.kit.service import Degraded, Remark
from services.work_marshaling.asking import Asking, told_refusal
from services.work_marshaling.identity import canonical_text, digest, server_id
from services.work_marshaling.intake import refuse_too_large, refuse_two_payloads, refuse_unsatisfiable
from services.work_marshaling.large import Large, reference_to
from services.work_marshaling.leading import Known, Leadership, Leading
from services.work_marshaling.meter import Measures
from services.work_marshaling.model import Cancel, Submission
from services.work_marshaling.store import Memory
from services.work_marshaling.submission import Submissions, Ticket
from services.work_marshaling.term import Term

ADMISSION_SECONDS = 5.0
SLICE = 200
MOST_WARNINGS = 8
MOST_NAME = 64


@dataclass(frozen=True, slots=True)
class _Ended:
    """The item is known, and no longer at hand."""

    work_id: str


@dataclass(frozen=True, slots=True)
class _Heavy:
    """Its payload is to be kept as an object first."""

    item: Submission
    content: bytes


Prepared = WorkAccepted | MeshError | _Ended | _Heavy | asyncio.Future[Ticket]


class WorkMarshaling:
    """Work may be submitted to any instance. All else needs the leader; `Unavailable` says that this is not it now."""

    def __init__(
        self,
        *,
        clock: Clock,
        leading: Leading,
        submissions: Submissions,
        asking: Asking,
        large: Large,
        new_id: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._asking = asking
        self._large = large
        self._new_id = new_id
        self._leading = leading
        self._submissions = submissions

    # Submitting

    async def submit(self, item: Submission) -> WorkAccepted:
        """The receipt: the item is on disk, and visible. Raises `Conflict`, `TooLarge`, `StreamFull`, `Unavailable`."""
        self._leading.refuse_while_full()
        known = self._leading.known
        (accepted,) = await self._receipts(known, [item], [self._prepare(known, item)])
        if isinstance(accepted, MeshError):
            raise accepted
        return accepted

    async def submit_many(self, asked: SubmitMany) -> SubmitAnswers:
        """Each item on its own; those that are accepted share their way to the disk."""
        self._leading.refuse_while_full()
        known = self._leading.known
        items: list[Submission | None] = []
        prepared: list[Prepared] = []
        for number, raw in enumerate(asked.items, start=1):
            try:
                item = _read(raw)
            except Malformed as error:
                items.append(None)
                prepared.append(error)
            else:
                items.append(item)
                prepared.append(self._prepare(known, item))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        answers = [_answer(each) for each in await self._receipts(known, items, prepared)]
        accepted = sum(answer.accepted is not None for answer in answers)
        return SubmitAnswers(answers=tuple(answers), accepted=accepted, refused=len(answers) - accepted)

    def _prepare(self, known: Known, item: Submission) -> Prepared:
        try:
            refuse_two_payloads(item)
            size = len(encode(item))
            content = canonical_text(item.payload).encode() if size > INLINE_MOST_BYTES else b""
            if len(content) > INLINE_MOST_BYTES:
                ref = reference_to(f"payload-{self._new_id()}", content)
                item = item.model_copy(update={"payload": {}, "payload_ref": ref})
            refuse_too_large(item, 0)
            before = _known(known.memory, item)
            if before is None and self._leading.leads():  # otherwise the leader refuses it when it reads it
                refuse_unsatisfiable(self._leading.present.term.possible, item)
        except MeshError as error:
            return error
        if before is None and item.payload_ref is not None and content:
            return _Heavy(item, content)
        return before or self._submissions.add(item, size + 1)

    async def _receipts(
        self, known: Known, items: Sequence[Submission | None], prepared: Sequence[Prepared]
    ) -> list[WorkAccepted | MeshError]:
        """Waits for the disk, then until our own reader has seen the items, so that they can be asked for."""
        tickets: list[Ticket | WorkAccepted | MeshError] = []
        for each in prepared:
            try:
                tickets.append(await self._ticket(each))
            except MeshError as error:
                tickets.append(error)
        last = max((ticket.sequence for ticket in tickets if isinstance(ticket, Ticket)), default=0)
        with suppress(TimeoutError, Unavailable):  # they are on disk: whoever leads next admits them
            async with asyncio.timeout(ADMISSION_SECONDS):
                await known.admitted(last)
        told = [
            await self._receipt(known, item, ticket) if isinstance(ticket, Ticket) else ticket
            for item, ticket in zip(items, tickets, strict=True)
        ]
        return [_warned(item, receipt) for item, receipt in zip(items, told, strict=True)]

    async def _ticket(self, prepared: Prepared) -> Ticket | WorkAccepted | MeshError:
        if isinstance(prepared, asyncio.Future):
            return await prepared
        if isinstance(prepared, _Heavy):
            assert prepared.item.payload_ref is not None
            await self._large.put(prepared.item.payload_ref.name, prepared.content)
            return await self._submissions.add(prepared.item, len(encode(prepared.item)) + 1)
        return await self._ended_before(prepared.work_id) if isinstance(prepared, _Ended) else prepared

    async def _ended_before(self, work_id: str) -> WorkAccepted:
        """What is known of an item that ended long ago. Raises `Conflict` when that is its id alone, and `Unavailable`
        while this instance does not lead, or the archive cannot be asked."""
        try:
            known = await self._asking.find_one(work_id)
        except NotFound as error:
            raise Conflict(f"work_id: {work_id} ended and is kept no longer", work_id=work_id) from error
        return WorkAccepted(work_id=known.work_id, sequence=known.sequence, status=known.status, duplicate=True)

    async def _receipt(self, told: Known, item: Submission | None, ticket: Ticket) -> WorkAccepted | MeshError:
        assert item is not None
        memory = told.memory
        refused = memory.refusal(ticket.sequence, ticket.index)
        if refused is not None:
            return told_refusal(refused)
        work_id = item.work_id or server_id(told.made, ticket.sequence, ticket.index)
        known = memory.items.get(work_id)
        if known is not None:
            duplicate = known.order != (ticket.sequence, ticket.index)
            return WorkAccepted(
                work_id=work_id,
                sequence=known.sequence,
                status=known.status,
                duplicate=duplicate,
                unsatisfiable_now=told.unsatisfiable(known),
            )
        if memory.find(ticket.sequence) != work_id:
            return WorkAccepted(work_id=work_id, sequence=ticket.sequence)
        try:
            return await self._ended_before(work_id)
        except MeshError as error:
            return error

    # Asking

    async def cancel(self, asked: CancelWork) -> WorkView:
        """Raises `Conflict` for an item that has ended, `NotFound`."""
        term = self._leading.present.term
        item = await self._asking.find_one(asked.work_id)
        if isinstance(item, Finished) or not item.open:
            raise Conflict(f"{item.work_id} has ended: it is {item.status.value}", status=item.status.value)
        term.happen(item.work_id, Cancel(reason=asked.reason))
        return await self._asking.look_up(WorkLookup(work_id=asked.work_id))

    async def stats(self) -> WorkStats:
        leadership = self._leading.present
        term, memory = leadership.term, leadership.term.memory
        return WorkStats(
            epoch=term.epoch,
            by_status={status.value: memory.by_status[status] for status in WorkStatus},
            pending_by_priority={str(priority): count for priority, count in sorted(term.queue.by_priority.items())},
            oldest_pending_seconds=self._oldest_pending(leadership),
            open_items=memory.open_items,
            ended_kept=memory.ended_items,
            remembered_ids=memory.remembered_ids,
            totals=dict(memory.totals),
            leases=len(term.leases),
            nodes=_free_slots(term),
            stream_fill_ratio=dict(leadership.upkeep.fill),
        )

    def measures(self) -> Measures | None:
        """For the metrics; None while another instance leads."""
        if not self._leading.leads():
            return None
        leadership = self._leading.present
        term, memory = leadership.term, leadership.term.memory
        return Measures(
            epoch=term.epoch,
            by_status={status.value: memory.by_status[status] for status in WorkStatus},
            pending_by_priority=dict(term.queue.by_priority),
            oldest_pending_seconds=self._oldest_pending(leadership) or 0.0,
            totals=dict(memory.totals),
            leases=len(term.leases),
            unwritten=term.journal.unwritten,
            remembered_ids=memory.remembered_ids,
            blacklisted=len({key[0] for key, fact in memory.conduct.items() if isinstance(fact, Blacklisted)}),
        )

    async def problem(self) -> str | None:
        """Why work cannot be taken in and given out now. That another instance leads is well, and is said; one that
        stands by for a leader that does not answer takes work in, and says that nobody gives it out.
        """
        if (waits := self._leading.waits_for_lease()) is not None:
            return Degraded(waits)
        standing = self._leading.stands_by()
        return self._leading.problem() if standing is None else Remark(standing)

    def _oldest_pending(self, leadership: Leadership) -> float | None:
        longest = leadership.term.queue.longest_waiting()
        if longest is None:
            return None
        return (self._clock.now() - leadership.term.memory.items[longest].submitted_at).total_seconds()


def _free_slots(term: Term) -> dict[str, int]:
    free = term.leases.free(term.nodes)
    return {node.node_id: free[node.node_id].total() if node.node_id in free else 0 for node in term.nodes.all()}


def _read(raw: Mapping[str, Any]) -> Submission:
    try:
        return AskedItem.model_validate(raw)
    except ValidationError as error:
        raise malformed("the item", error, values=True) from error


def _warned(item: Submission | None, receipt: WorkAccepted | MeshError) -> WorkAccepted | MeshError:
    if not isinstance(item, AskedItem) or isinstance(receipt, MeshError):
        return receipt
    warnings = [_ignored(name, "", "field", Submission) for name in item.unknown]
    warnings += [_ignored(name, "requirements.", "requirement", Requirements) for name in item.requirements.unknown]
    return receipt.model_copy(update={"warnings": tuple(warnings[:MOST_WARNINGS])}) if warnings else receipt


def _ignored(name: str, before: str, what: str, kind: type[Message]) -> str:
    short = name[:MOST_NAME].encode("ascii", "backslashreplace").decode()
    near = get_close_matches(short, kind.model_fields, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{before}{short}: there is no such {what}, it was ignored{meant}"


def _known(memory: Memory, item: Submission) -> WorkAccepted | _Ended | None:
    """What is known of an item already submitted under its own id. Raises `Conflict` when that was another one."""
    if item.work_id is None:
        return None
    known = memory.items.get(item.work_id)
    before = memory.forgotten_digest(item.work_id) if known is None else known.digest
    if before is None:
        return None
    if before != digest(item):
        raise Conflict(f"work_id: {item.work_id} belongs to an item with other content", work_id=item.work_id)
    if known is None:
        return _Ended(item.work_id)
    return WorkAccepted(work_id=known.work_id, sequence=known.sequence, status=known.status, duplicate=True)


def _answer(outcome: WorkAccepted | MeshError) -> SubmitAnswer:
    if isinstance(outcome, WorkAccepted):
        return SubmitAnswer(accepted=outcome)
    return SubmitAnswer(error=ErrorBody(code=outcome.code, message=outcome.message, details=outcome.details))
