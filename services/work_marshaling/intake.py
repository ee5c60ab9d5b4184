"""Reads what is submitted and how attempts ended, in order, from where the log says it stopped reading."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime

import structlog

from libs.common.bus.bus import Bus, Stored
from libs.common.bus.codec import encode
from libs.common.clock import Clock
from libs.common.contracts.streams import INLINE_MOST_BYTES, WORK_IN, WORK_OUT
from libs.common.contracts.work_log import Ignored, IgnoredReason, Refused
from libs.common.contracts.work_marshaling import FAILED as FAILED_TOPIC
from libs.common.contracts.work_marshaling import SUBMITTED, WorkCompleted
from libs.common.errors import Disconnected, Malformed, MeshError, TimedOut, TooLarge, Unsatisfiable
from libs.common.log.position import Position
from services.work_marshaling.explaining import Possible
from services.work_marshaling.facts import INLINE_BYTES, envelope_bytes
from services.work_marshaling.identity import digest, payload_text, server_id
from services.work_marshaling.matching import wanted_of
from services.work_marshaling.model import Completed, Failed, Submission, Submitted
from services.work_marshaling.payloads import submissions
from services.work_marshaling.records import EarlierIds
from services.work_marshaling.results import Results, completed
from services.work_marshaling.term import Term

MOST_ENVELOPE_BYTES = 64 * 1024
SLICE = 200
OUTCOMES_AT_A_STRETCH = 16
"""So that what one of them makes possible, another item in its slot, does not wait for all of them."""
MOST_UNARCHIVED = 100_000

Read = tuple[Submission, ...] | Malformed

_WHY_IGNORED = {
    IgnoredReason.NO_TOKEN: "an outcome needs the attempt token, unless the item was given to `external`",
    IgnoredReason.UNKNOWN_TOKEN: "no attempt at this item has this token",
    IgnoredReason.UNKNOWN_ITEM: "there is no such item, or it ended long ago",
}

_log = structlog.get_logger()


class Intake:
    """`admitted` is how far WORK_IN has been read into memory."""

    def __init__(self, bus: Bus, clock: Clock, term: Term, results: Results, earlier: EarlierIds) -> None:
        self._bus = bus
        self._clock = clock
        self._term = term
        self._results = results
        self._earlier = earlier
        self._made: datetime = term.origins[WORK_IN.name]
        self.admitted = Position(term.memory.in_seq)
        self._heard = 0

    async def read_work(self) -> None:
        """Runs until cancelled."""
        messages = self._bus.read(WORK_IN, after=self._term.memory.in_seq)
        async with aclosing(messages):  # type: ignore[type-var]  # an async generator on every transport
            async for batch in messages:
                read = await self._submitted(batch)
                known = await self._known_earlier(read)
                for stored, items in zip(batch, read, strict=True):
                    await self._work(stored, items, known)
                    self.admitted.advance(stored.sequence)
                await self._room_for_items()

    async def read_outcomes(self) -> None:
        """Runs until cancelled."""
        messages = self._bus.read(WORK_OUT, after=self._term.memory.out_seq)
        async with aclosing(messages):  # type: ignore[type-var]  # an async generator on every transport
            async for batch in messages:
                for stored in batch:
                    await self._outcomes(stored)
                await self._breathe()

    async def _breathe(self) -> None:
        await self._term.room()
        await asyncio.sleep(0)

    async def _room_for_items(self) -> None:
        """Submissions wait while too many items are open, or too many ended ones can be handed to nobody.

        Outcomes never do: they are what makes the room.
        """
        await self._breathe()
        memory = self._term.memory
        while memory.open_items >= self._term.rules.open_most or len(memory.unarchived) >= MOST_UNARCHIVED:
            await self._clock.sleep(1.0)

    # Work

    async def _submitted(self, batch: Sequence[Stored]) -> list[Read]:
        """A message may hold ten thousand items: others have their turn between two of them."""
        read = [self._items(batch[0])]
        for stored in batch[1:]:
            await asyncio.sleep(0)
            read.append(self._items(stored))
        return read

    def _items(self, stored: Stored) -> Read:
        try:
            return submissions(self._bus, stored)
        except Malformed as error:
            return error

    async def _known_earlier(self, read: Sequence[Read]) -> Mapping[str, str]:
        items = (item for each in read if not isinstance(each, Malformed) for item in each)
        return await self._earlier.digests(self._term.memory, items)

    async def _work(self, stored: Stored, items: Read, known: Mapping[str, str]) -> None:
        """`known` are the contents of ids that ended long ago."""
        if isinstance(items, Malformed):
            await self._refuse(stored, 0, items, last=True)
            return
        last = len(items) - 1
        for index, item in enumerate(items):
            await self._admit(stored, index, item, known, last=index == last)
            if index % SLICE == SLICE - 1:
                await self._room_for_items()
        if not items:
            self._term.memory.in_seq = stored.sequence

    async def _admit(
        self, stored: Stored, index: int, item: Submission, known: Mapping[str, str], *, last: bool
    ) -> None:
        text = payload_text(item.payload) if item.payload else "{}"
        size = len(text.encode()) if item.payload_ref is None else item.payload_ref.bytes
        try:
            refuse_two_payloads(item)
            refuse_too_large(item, size if item.payload_ref is None else 0)
        except (Malformed, TooLarge) as error:
            await self._refuse(stored, index, error, last=last, work_id=item.work_id)
            return
        own, batched = item.work_id, stored.subject == SUBMITTED.subject
        work_id = own or server_id(self._made, stored.sequence, index if batched else None)
        try:
            if work_id not in self._term.memory.items:
                refuse_unsatisfiable(self._term.possible, item)
        except Unsatisfiable as error:
            await self._refuse(stored, index, error, last=last, work_id=own)
            return
        event = Submitted(
            work_id=work_id,
            sequence=stored.sequence,
            index=index,
            at=stored.at,
            item=item.model_copy(update={"payload": {}}),
            payload=text if size <= INLINE_BYTES or item.payload_ref is not None else None,
            payload_bytes=size,
            digest=digest(item) if own else "",
            forgotten_digest=(self._term.memory.forgotten_digest(work_id) or known.get(work_id)) if own else None,
        )
        self._read_up_to(stored, last=last)
        self._term.happen(work_id, event)

    async def _refuse(
        self, stored: Stored, index: int, error: MeshError, *, last: bool, work_id: str | None = None
    ) -> None:
        await self._bury(stored, error)
        self._read_up_to(stored, last=last)
        fact = Refused(
            sequence=stored.sequence, index=index, work_id=work_id, code=error.code, reason=error.message[:512]
        )
        self._term.keep((fact,))

    def _read_up_to(self, stored: Stored, *, last: bool) -> None:
        """The cursor moves with a message's last item: after a crash in between, the message is read again."""
        if last:
            self._term.memory.in_seq = stored.sequence

    # Outcomes

    async def _outcomes(self, stored: Stored) -> None:
        try:
            events = self._events(stored)
        except Malformed as error:
            await self._bury(stored, error)
            self._term.memory.out_seq = stored.sequence
            ignored = Ignored(work_id="", out_seq=stored.sequence, reason=IgnoredReason.UNREADABLE)
            self._term.keep((ignored,))
            return
        for number, event in enumerate(events, 1):
            if number == len(events):  # as with submissions: before that, the message must be read again
                self._term.memory.out_seq = stored.sequence
            await self._outcome(stored, event)
            self._heard += 1
            if self._heard % OUTCOMES_AT_A_STRETCH == 0:
                await self._breathe()

    async def _outcome(self, stored: Stored, event: Completed | Failed) -> None:
        for fact in self._term.happen(event.work_id, event):
            if isinstance(fact, Ignored) and fact.reason in _WHY_IGNORED:
                await self._bury(stored, Malformed(_WHY_IGNORED[fact.reason], work_id=event.work_id))

    def _events(self, stored: Stored) -> tuple[Completed | Failed, ...]:
        """Raises `Malformed`."""
        if stored.subject != FAILED_TOPIC.subject:
            told = completed(self._bus, stored)
            return tuple(self._completed(stored, each, alone=len(told) == 1) for each in told)
        failed = self._bus.decode(FAILED_TOPIC, stored)
        event = Failed(
            work_id=failed.work_id,
            token=failed.attempt_token,
            out_seq=stored.sequence,
            error=failed.error,
            started_at=failed.started_at,
        )
        return (event,)

    def _completed(self, stored: Stored, told: WorkCompleted, *, alone: bool) -> Completed:
        size = len(stored.payload) if alone else len(encode(told))
        self._results.heard(stored.sequence, told, size)
        return Completed(
            work_id=told.work_id,
            token=told.attempt_token,
            out_seq=stored.sequence,
            result_bytes=size if told.result_ref is None else told.result_ref.bytes,
            started_at=told.started_at,
        )

    async def _bury(self, stored: Stored, error: MeshError) -> None:
        """Keep it as a dead letter. While NATS is away there is nothing else to read either."""
        while True:
            try:
                await self._bus.dead_letter(stored, error)
            except (Disconnected, TimedOut):
                await self._clock.sleep(1.0)
            except MeshError as unkept:
                _log.error("dead_letter_not_kept", sequence=stored.sequence, reason=unkept.message)
                return
            else:
                return


def refuse_two_payloads(item: Submission) -> None:
    """Raises `Malformed`."""
    if item.payload and item.payload_ref is not None:
        raise Malformed("payload: give it or `payload_ref`, not both", field="payload_ref")


def refuse_too_large(item: Submission, payload_bytes: int) -> None:
    """What is refused in a message. Raises `TooLarge`, naming the part, its size and the limit."""
    if payload_bytes > INLINE_MOST_BYTES:
        told = f"payload: {payload_bytes} bytes; at most {INLINE_MOST_BYTES} are allowed in a message"
        raise TooLarge(
            f"{told}: submit it over REST, or as an object",
            field="payload",
            value=payload_bytes,
            limit=INLINE_MOST_BYTES,
        )
    envelope = envelope_bytes(item)
    if envelope > MOST_ENVELOPE_BYTES:
        raise TooLarge(
            f"labels and requirements: {envelope} bytes; at most {MOST_ENVELOPE_BYTES} are allowed",
            field="labels and requirements",
            value=envelope,
            limit=MOST_ENVELOPE_BYTES,
        )


def refuse_unsatisfiable(possible: Possible, item: Submission) -> None:
    """Raises `Unsatisfiable` when its submitter asked for that, saying what is missing."""
    if item.refuse_unsatisfiable:
        reason = possible.why_not(wanted_of(item.work_type, item.model_name, item.requirements))
        if reason is not None:
            raise Unsatisfiable(f"requirements: {reason}", field="requirements")
