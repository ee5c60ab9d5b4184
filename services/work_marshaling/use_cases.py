"""What can be asked of the queue, by either door."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode, malformed
from libs.common.clock import Clock
from libs.common.contracts.base import ErrorBody, Json
from libs.common.contracts.streams import WORK_IN, WORK_OUT
from libs.common.contracts.work_marshaling import (
    COMPLETED,
    CancelWork,
    SubmitAnswer,
    SubmitAnswers,
    SubmitMany,
    WorkAccepted,
    WorkLookup,
    WorkPage,
    WorkResult,
    WorkStats,
    WorkStatus,
    WorkView,
)
from libs.common.errors import Conflict, Malformed, MeshError, NotFound, Unavailable, error_named
from services.work_marshaling.identity import digest, payload_text, server_id
from services.work_marshaling.intake import refuse_too_large
from services.work_marshaling.leading import Leadership, Leading
from services.work_marshaling.listing import page
from services.work_marshaling.meter import Measures
from services.work_marshaling.model import Cancel, Filter, Refusal, Submission, WorkItem, view
from services.work_marshaling.store import Memory
from services.work_marshaling.submission import Submissions, Ticket
from services.work_marshaling.term import Term

ADMISSION_SECONDS = 5.0
SEQUENCE_SECONDS = 1.0
SMALL_RESULT_BYTES = 4096
SLICE = 200

Prepared = WorkAccepted | MeshError | asyncio.Future[Ticket]


class WorkMarshaling:
    """Everything here needs the leader; `Unavailable` says that this instance is not it now."""

    def __init__(self, *, bus: Bus, clock: Clock, leading: Leading, submissions: Submissions) -> None:
        self._bus = bus
        self._clock = clock
        self._leading = leading
        self._submissions = submissions

    # Submitting

    async def submit(self, item: Submission) -> WorkAccepted:
        """The receipt: the item is on disk, and visible. Raises `Conflict`, `TooLarge`, `StreamFull`, `Unavailable`."""
        leadership = self._leading.present
        (accepted,) = await self._receipts(leadership, [item], [self._prepare(leadership, item)])
        if isinstance(accepted, MeshError):
            raise accepted
        return accepted

    async def submit_many(self, asked: SubmitMany) -> SubmitAnswers:
        """Each item on its own; those that are accepted share their way to the disk."""
        leadership = self._leading.present
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
                prepared.append(self._prepare(leadership, item))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        answers = [_answer(each) for each in await self._receipts(leadership, items, prepared)]
        accepted = sum(answer.accepted is not None for answer in answers)
        return SubmitAnswers(answers=tuple(answers), accepted=accepted, refused=len(answers) - accepted)

    def _prepare(self, leadership: Leadership, item: Submission) -> Prepared:
        try:
            size = len(encode(item))
            refuse_too_large(item, size if size <= SMALL_RESULT_BYTES else len(payload_text(item.payload).encode()))
            known = _known(leadership.term.memory, item)
        except MeshError as error:
            return error
        return known or self._submissions.add(item, size + 1)

    async def _receipts(
        self, leadership: Leadership, items: Sequence[Submission | None], prepared: Sequence[Prepared]
    ) -> list[WorkAccepted | MeshError]:
        """Waits for the disk, then until our own reader has seen the items, so that they can be asked for."""
        tickets: list[Ticket | WorkAccepted | MeshError] = []
        for each in prepared:
            try:
                tickets.append(await each if isinstance(each, asyncio.Future) else each)
            except MeshError as error:
                tickets.append(error)
        last = max((ticket.sequence for ticket in tickets if isinstance(ticket, Ticket)), default=0)
        with suppress(TimeoutError, Unavailable):  # they are on disk: whoever leads next admits them
            async with asyncio.timeout(ADMISSION_SECONDS):
                await leadership.intake.admitted.reached(last)
        return [
            _receipt(leadership, item, ticket) if isinstance(ticket, Ticket) else ticket
            for item, ticket in zip(items, tickets, strict=True)
        ]

    # Asking

    async def look_up(self, asked: WorkLookup) -> WorkView:
        """An item by its id or by its sequence in WORK_IN. Raises `NotFound`, or why it was refused."""
        if (asked.work_id is None) == (asked.sequence is None):
            raise Malformed("give either `work_id` or `sequence`")
        work_id = asked.work_id or await self._id_at(asked.sequence or 0)
        item = await self._item(work_id)
        small = item.status is WorkStatus.COMPLETED and item.result_bytes <= SMALL_RESULT_BYTES
        return view(item, await self._result_of(item) if small else None)

    async def result(self, work_id: str, wait_seconds: float) -> WorkResult:
        """How an item ended; waits for it so long. Raises `NotFound` when it has not ended by then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self._leading.present.term.ended(work_id)
        item = await self._item(work_id)
        if item.open:
            raise NotFound(f"{work_id} has not ended: it is {item.status.value}", status=item.status.value)
        done = next((attempt for attempt in item.attempts if attempt.out_seq == item.out_seq), None)
        return WorkResult(
            work_id=work_id,
            status=item.status,
            ended_at=item.ended_at,
            node_id=done.node_id if done is not None and item.out_seq is not None else None,
            result=await self._result_of(item) if item.status is WorkStatus.COMPLETED else None,
            error=item.error,
        )

    async def find(self, wanted: Filter, *, limit: int, cursor: str | None) -> WorkPage:
        memory = self._leading.present.term.memory
        found = page(reversed(memory.items.values()), wanted, limit=limit, cursor=cursor)
        return WorkPage(items=tuple(view(item) for item in found.items), cursor=found.cursor)

    async def cancel(self, asked: CancelWork) -> WorkView:
        """Raises `Conflict` for an item that has ended, `NotFound`."""
        term = self._leading.present.term
        item = await self._item(asked.work_id)
        if not item.open:
            raise Conflict(f"{item.work_id} has ended: it is {item.status.value}", status=item.status.value)
        term.happen(item.work_id, Cancel(reason=asked.reason))
        return view(await self._item(asked.work_id))

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
        )

    async def problem(self) -> str | None:
        """Why work cannot be taken in and given out now."""
        return self._leading.problem()

    def _oldest_pending(self, leadership: Leadership) -> float | None:
        longest = leadership.term.queue.longest_waiting()
        if longest is None:
            return None
        return (self._clock.now() - leadership.term.memory.items[longest].submitted_at).total_seconds()

    async def _item(self, work_id: str) -> WorkItem:
        """The item as it is on disk. Raises `NotFound`."""
        term = self._leading.present.term
        await term.journal.confirmed(work_id)
        item = term.memory.items.get(work_id)
        if item is None:
            raise NotFound(f"there is no work item {work_id[:128]}")
        return item

    async def _id_at(self, sequence: int) -> str:
        leadership = self._leading.present
        with suppress(TimeoutError):
            async with asyncio.timeout(SEQUENCE_SECONDS):
                await leadership.intake.admitted.reached(sequence)
        memory, made = leadership.term.memory, leadership.term.origins[WORK_IN.name]
        refused = memory.refusal(sequence)
        if refused is not None:
            raise _refused(refused)
        candidates = (memory.find(sequence), server_id(made, sequence), server_id(made, sequence, 0))
        found = next((work_id for work_id in candidates if work_id in memory.items), None)
        if found is None:
            raise NotFound(f"no work item is known under the sequence {sequence}")
        return found

    async def _result_of(self, item: WorkItem) -> Json:
        """What the worker told. Raises `NotFound` when it is kept no longer."""
        stored = None if item.out_seq is None else await self._bus.message(WORK_OUT, item.out_seq)
        told = None if stored is None else self._bus.decode(COMPLETED, stored)
        if told is None or told.work_id != item.work_id:
            raise NotFound(f"the result of {item.work_id} is kept no longer", status=item.status.value)
        return told.result


def _free_slots(term: Term) -> dict[str, int]:
    free = term.leases.free(term.nodes)
    return {node.node_id: free[node.node_id].total() if node.node_id in free else 0 for node in term.nodes.all()}


def _read(raw: Mapping[str, Any]) -> Submission:
    try:
        return Submission.model_validate(raw)
    except ValidationError as error:
        raise malformed("the item", error) from error


def _known(memory: Memory, item: Submission) -> WorkAccepted | None:
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
        raise Conflict(f"work_id: {item.work_id} ended and is kept no longer", work_id=item.work_id)
    return WorkAccepted(work_id=known.work_id, sequence=known.sequence, status=known.status, duplicate=True)


def _receipt(leadership: Leadership, item: Submission | None, ticket: Ticket) -> WorkAccepted | MeshError:
    assert item is not None
    memory = leadership.term.memory
    refused = memory.refusal(ticket.sequence, ticket.index)
    if refused is not None:
        return _refused(refused)
    made = leadership.term.origins[WORK_IN.name]
    work_id = item.work_id or server_id(made, ticket.sequence, ticket.index)
    known = memory.items.get(work_id)
    if known is None:
        return WorkAccepted(work_id=work_id, sequence=ticket.sequence)
    duplicate = known.order != (ticket.sequence, ticket.index)
    return WorkAccepted(work_id=work_id, sequence=known.sequence, status=known.status, duplicate=duplicate)


def _refused(refused: Refusal) -> MeshError:
    return error_named(refused.code, refused.reason, {"work_id": refused.work_id})


def _answer(outcome: WorkAccepted | MeshError) -> SubmitAnswer:
    if isinstance(outcome, WorkAccepted):
        return SubmitAnswer(accepted=outcome)
    return SubmitAnswer(error=ErrorBody(code=outcome.code, message=outcome.message, details=outcome.details))
