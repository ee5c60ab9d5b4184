"""Outcomes on their way: journaled and appended to the stream, and only then let go."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode
from libs.common.clock import Clock
from libs.common.contracts.base import Written
from libs.common.contracts.work_marshaling import COMPLETED, FAILED, Assignment, WorkCompleted
from libs.common.contracts.work_outcomes import OUTCOMES, WorkOutcomes
from libs.common.errors import Forbidden, MeshError, NobodyAnswers, StreamFull, TooLarge, Unavailable
from services.node_agent.large import Large
from services.node_agent.model import Outcome, Running
from services.node_agent.observer import AgentObserver
from services.node_agent.outcomes import failed, message_for
from services.node_agent.store import Journal

log = structlog.get_logger()

AT_ONCE = 64
ROUNDS_AT_ONCE = 4
TOGETHER = 100
TOGETHER_BYTES = 4096
"""What is larger is told alone."""
APPEND_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Letter:
    assignment: Assignment
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Card:
    """A small result, as it is written."""

    letter: _Letter
    json: bytes


class Outbox:
    """Delivers every outcome it was given, however long NATS is away. The message id is the attempt's token, so the
    stream keeps one message however often it is sent.

    NATS does not wait for the journal, nor the journal for NATS. If we die between the two, what the other has decides:
    an outcome that only NATS has is the one that counts, whatever is told of its attempt later.

    Small results that wait at the same moment are told in one message, under the digest of its content. After a
    kill they may be told once more, in another one: that counts nothing.
    """

    def __init__(self, bus: Bus, journal: Journal, clock: Clock, observer: AgentObserver) -> None:
        self._bus = bus
        self._large = Large(bus)
        self._journal = journal
        self._clock = clock
        self._observer = observer
        self._letters: asyncio.Queue[_Letter] = asyncio.Queue()
        self._cards: asyncio.Queue[_Card] = asyncio.Queue()
        self._delivered: asyncio.Queue[Assignment] = asyncio.Queue()
        self._held: dict[str, Running] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._away = False

    @property
    def undelivered(self) -> int:
        return len(self._held)

    def held(self) -> Sequence[Running]:
        """Attempts that are over and whose outcome is still on its way: they need their leases until it has arrived."""
        return tuple(self._held.values())

    async def end(self, assignment: Assignment, outcome: Outcome) -> None:
        """Journal how an attempt ended, and see to it that NATS is told."""
        self._hold(assignment)
        self._post(_Letter(assignment, outcome))
        try:
            await self._journal.ended(assignment.attempt_token or "", outcome)
        except Unavailable as error:
            # Delivered all the same: if we die before that, the attempt is only run once more.
            log.error("outcome_not_journaled", work=assignment.work_id, reason=error.message)

    def resume(self, assignment: Assignment, outcome: Outcome) -> None:
        """Deliver what an earlier run of the agent journaled and could not deliver."""
        self._hold(assignment)
        self._post(_Letter(assignment, outcome))

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as postmen:
            for _ in range(AT_ONCE):
                postmen.create_task(self._deliver_all())
            for _ in range(ROUNDS_AT_ONCE):
                postmen.create_task(self._deliver_cards())
            postmen.create_task(self._let_all_go())

    async def emptied(self, seconds: float) -> bool:
        """Wait until everything is delivered, so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _post(self, letter: _Letter) -> None:
        if letter.outcome.error is None:
            json = encode(message_for(letter.assignment, letter.outcome))
            if len(json) <= TOGETHER_BYTES:
                self._cards.put_nowait(_Card(letter, json))
                return
        self._letters.put_nowait(letter)

    async def _deliver_cards(self) -> None:
        while True:
            cards = [await self._cards.get()]
            while len(cards) < TOGETHER and not self._cards.empty():
                cards.append(self._cards.get_nowait())
            if await self._delivered_together(cards):
                for each in cards:
                    self._observer.delivered()
                    self._delivered.put_nowait(each.letter.assignment)
            else:
                for each in cards:
                    self._letters.put_nowait(each.letter)

    async def _delivered_together(self, cards: Sequence[_Card]) -> bool:
        """False when they must be told one by one: to a work marshaling, or with permissions, that knows no other way;
        or because one of them may have room where all have none."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._append_together(cards)
            except (NobodyAnswers, Forbidden, TooLarge, StreamFull):
                return False
            except MeshError as error:
                self._note_away(error)
                await self._clock.sleep(pause)
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
            else:
                self._note_back()
                return True

    async def _append_together(self, cards: Sequence[_Card]) -> None:
        if len(cards) == 1:
            one = Written(WorkCompleted, cards[0].json)
            token = cards[0].letter.assignment.attempt_token
            await self._bus.append(COMPLETED, one, message_id=token, timeout=APPEND_SECONDS)
            return
        json = b'{"completed":[' + b",".join(each.json for each in cards) + b"]}"
        told = Written(WorkOutcomes, json)
        await self._bus.append(OUTCOMES, told, message_id=sha256(json).hexdigest(), timeout=APPEND_SECONDS)

    async def _deliver_all(self) -> None:
        while True:
            letter = await self._letters.get()
            await self._deliver(letter)
            self._delivered.put_nowait(letter.assignment)

    async def _deliver(self, letter: _Letter) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._append(letter)
                break
            except TooLarge as error:
                letter = _Letter(letter.assignment, self._too_large(letter.outcome, error))
            except MeshError as error:
                self._note_away(error)
                await self._clock.sleep(pause)
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
        self._note_back()
        self._observer.delivered()

    async def _append(self, letter: _Letter) -> None:
        message = message_for(letter.assignment, letter.outcome)
        token = letter.assignment.attempt_token
        if isinstance(message, WorkCompleted):
            told = await self._large.with_result_apart(message)
            await self._bus.append(COMPLETED, told, message_id=token, timeout=APPEND_SECONDS)
        else:
            await self._bus.append(FAILED, message, message_id=token, timeout=APPEND_SECONDS)

    async def _let_all_go(self) -> None:
        """All that were delivered while the journal was busy share its next transaction."""
        while True:
            delivered = [await self._delivered.get()]
            while not self._delivered.empty():
                delivered.append(self._delivered.get_nowait())
            try:
                await self._journal.delivered([each.attempt_token or "" for each in delivered])
            except Unavailable as error:
                # They are delivered once more after a restart, under the same tokens, which counts nothing.
                log.warning("deliveries_not_journaled", attempts=len(delivered), reason=error.message)
            for each in delivered:
                self._release(each)

    def _too_large(self, outcome: Outcome, error: TooLarge) -> Outcome:
        return failed(
            "result_too_large",
            error.message,
            retryable=False,
            started_at=outcome.started_at,
            ended_at=outcome.ended_at or self._clock.now(),
        )

    def _note_away(self, error: MeshError) -> None:
        self._observer.delivery_failed()
        if not self._away:
            log.warning("outcomes_wait", undelivered=self.undelivered, code=error.code, reason=error.message)
        self._away = True

    def _note_back(self) -> None:
        if self._away:
            log.info("outcomes_are_delivered_again", undelivered=self.undelivered)
        self._away = False

    def _hold(self, assignment: Assignment) -> None:
        now = self._clock.now()
        self._held[assignment.attempt_token or ""] = Running(assignment=assignment, accepted_at=now, started_at=now)
        self._empty.clear()

    def _release(self, assignment: Assignment) -> None:
        self._held.pop(assignment.attempt_token or "", None)
        if not self._held:
            self._empty.set()
