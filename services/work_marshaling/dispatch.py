"""Gives assignments to nodes and tells them what to stop. Asks again until a node has answered or the lease is over."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog
from pydantic_core import to_json

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode, encode_list, encode_without, joined
from libs.common.clock import Clock
from libs.common.contracts.base import Written
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    ASSIGNED,
    EXTERNAL,
    STOP,
    Assignment,
    AssignmentAnswer,
    Assignments,
    StopAttempts,
    WorkStatus,
)
from libs.common.contracts.work_requirements import JobMemory, Requirements
from libs.common.errors import MeshError, NobodyAnswers, TimedOut, Unavailable
from libs.common.log.fenced_log import SteppedDown
from services.work_marshaling.matching import promise
from services.work_marshaling.model import Effect, NodeRefused, Offer, PayloadLost, Stop, WorkItem
from services.work_marshaling.payloads import Payloads
from services.work_marshaling.term import Term

MOST_AT_ONCE = 100
MOST_BYTES = 600_000
ANSWER_SECONDS = 5.0
PAUSE_SECONDS = 0.5
STOP_AGAIN_SECONDS = 5.0
STOPS_REMEMBERED = 10_000
REFUSALS_REMEMBERED = 10_000
FIRST_AVOIDANCE_SECONDS = 0.25
OBSERVED_AT_A_STRETCH = 10
_FOR_THE_NODE = {"attempt_token": b"null", "payload": b"null", "payload_ref": b"null"}
"""What observers are not told, as they are told it."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Written:
    """An assignment as its node is told it. `shared` is what observers may know: not its payload, nor its token."""

    work_id: str
    token: str
    wants_memory: bool
    shared: bytes
    json: bytes


@dataclass(slots=True)
class _Offered:
    """`unheard_since` is since when nobody was there. `certain`: nor at any try before, so it cannot have begun."""

    work_id: str
    unheard_since: float | None
    certain: bool = True


class Dispatcher:
    """One task per node that has something to be told; nodes never wait for one another."""

    def __init__(self, bus: Bus, clock: Clock, term: Term, payloads: Payloads) -> None:
        self._bus = bus
        self._clock = clock
        self._term = term
        self._payloads = payloads
        self._offers: dict[str, OrderedDict[str, _Offered]] = {}
        self._stops: dict[str, dict[str, str]] = {}
        self._stopped_at: OrderedDict[str, float] = OrderedDict()
        self._refusals: Counter[tuple[str, bool]] = Counter()
        self._busy: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._accepted: deque[tuple[str, bytes]] = deque()
        self._leader = (0, b"")
        self._news = asyncio.Event()

    def do(self, effect: Effect) -> None:
        match effect:
            case Offer(work_id=work_id, node_id=node_id, token=token, again=again):
                self._offers.setdefault(node_id, OrderedDict())[token] = _Offered(work_id, None, certain=not again)
                self._attend(node_id)
            case Stop(node_id=node_id, token=token, reason=reason):
                self.stop(node_id, token, reason)

    def stop(self, node_id: str, token: str, reason: str) -> None:
        """Tell a node, at most once in a while per attempt. Whoever goes on reporting it is told again."""
        now = self._clock.monotonic()
        if node_id == EXTERNAL or now - self._stopped_at.get(token, -STOP_AGAIN_SECONDS) < STOP_AGAIN_SECONDS:
            return
        self._stopped_at[token] = now
        if len(self._stopped_at) > STOPS_REMEMBERED:
            self._stopped_at.popitem(last=False)
        self._stops.setdefault(node_id, {})[token] = reason
        self._attend(node_id)

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for node_id in {*self._offers, *self._stops}:
                    self._attend(node_id)
                await self._tell_observers()
            finally:
                self._tasks = None

    def _attend(self, node_id: str) -> None:
        """What comes before `run` waits for it; what comes after it is left to the next leader."""
        if self._tasks is not None and node_id not in self._busy:
            self._busy.add(node_id)
            self._tasks.create_task(self._serve(node_id), name=f"assignments for {node_id}")

    async def _serve(self, node_id: str) -> None:
        try:
            while self._offers.get(node_id) or self._stops.get(node_id):
                await self._tell_stops(node_id)
                if not await self._offer(node_id):
                    await self._clock.sleep(PAUSE_SECONDS)
        except BaseException:
            self._tasks = None  # a group of which one ended like this takes no more
            raise
        finally:
            self._busy.discard(node_id)
            self._offers.pop(node_id, None)

    async def _offer(self, node_id: str) -> bool:
        """One request with as many assignments as fit. False when it was not answered."""
        offered = self._offers.get(node_id, OrderedDict())
        batch = await self._batch(node_id, offered)
        if not batch:
            return True
        if node_id == EXTERNAL:
            return await self._publish_external(offered, batch)
        tokens = [assignment.token for assignment in batch]
        try:
            again = not all(offered[token].certain for token in tokens)
            assignments = encode_list([each.json for each in batch])
            request = joined(Assignments, self._from_leader(), again=to_json(again), assignments=assignments)
            answers = await self._bus.request(ASSIGN, request, node_id=node_id, timeout=ANSWER_SECONDS)
        except NobodyAnswers:
            self._nobody(node_id, offered, tokens)
            return False
        except Unavailable as error:
            for token in tokens:
                offered[token].certain = False
            if isinstance(error, TimedOut):
                self._term.nodes.unheard(node_id, self._clock.monotonic(), ANSWER_SECONDS / 2)
            return False
        except MeshError as error:
            self._refuse(node_id, offered, tokens, f"{error.code}: {error.message}")
            return True
        return await self._answered(node_id, offered, batch, answers.answers)

    def _from_leader(self) -> bytes:
        """What all requests of one epoch have in common."""
        epoch = self._term.epoch
        if self._leader[0] != epoch:
            leader = Assignments(epoch=epoch, log_made=self._term.log_made, assignments=())
            self._leader = epoch, encode_without(leader, "again", "assignments")
        return self._leader[1]

    async def _batch(self, node_id: str, offered: OrderedDict[str, _Offered]) -> list[_Written]:
        batch: list[_Written] = []
        total = 0
        for token, entry in tuple(offered.items()):
            item = self._term.memory.items.get(entry.work_id)
            if item is None or item.live is None or item.live.token != token or item.status is not WorkStatus.ASSIGNED:
                offered.pop(token, None)
                continue
            if len(batch) >= MOST_AT_ONCE or (batch and total + item.spec.carried_bytes > MOST_BYTES):
                break
            assignment = await self._assignment(item, node_id, token)
            if assignment is None:
                offered.pop(token, None)
                continue
            batch.append(assignment)
            total += item.spec.carried_bytes + 1024
        return batch

    async def _assignment(self, item: WorkItem, node_id: str, token: str) -> _Written | None:
        """None when its payload is not to be had, now or for ever."""
        try:
            payload = await self._payloads.of(item)
        except Unavailable as error:
            self._term.happen(item.work_id, NodeRefused(token=token, detail=f"payload: {error.message}"))
            return None
        if payload is None:
            _log.error("payload_lost", work_id=item.work_id, sequence=item.sequence)
            self._term.happen(item.work_id, PayloadLost())
            return None
        spec = item.spec
        memory = _memory(spec.requirements)
        assignment = Assignment(
            work_id=item.work_id,
            attempt=item.attempts[-1].number,
            attempt_token=None,
            node_id=node_id,
            work_type=spec.work_type,
            model_name=spec.model_name,
            priority=spec.priority,
            timeout_seconds=spec.timeout_seconds,
            lease_seconds=spec.timeout_seconds if spec.external else self._term.rules.lease_seconds,
            deadline=spec.deadline,
            labels=dict(spec.labels),
            payload_bytes=spec.payload_bytes,
            memory=memory,
        )
        shared = encode_without(assignment, *_FOR_THE_NODE)
        apart = {"payload": payload} if spec.payload_ref is None else {"payload_ref": encode(spec.payload_ref)}
        told = joined(Assignment, shared, **_FOR_THE_NODE | {"attempt_token": to_json(token)} | apart)
        return _Written(item.work_id, token, memory is not None, shared, told.json)

    async def _publish_external(self, offered: OrderedDict[str, _Offered], batch: Sequence[_Written]) -> bool:
        try:
            for assignment in batch:
                await self._bus.publish(ASSIGNED, Written(Assignment, assignment.json))
                offered.pop(assignment.token, None)
        except Unavailable:
            return False
        return True

    async def _answered(
        self,
        node_id: str,
        offered: OrderedDict[str, _Offered],
        batch: Sequence[_Written],
        answers: Sequence[AssignmentAnswer],
    ) -> bool:
        """True when every assignment was answered, one way or the other."""
        given = {assignment.token: assignment for assignment in batch}
        for answer in answers:
            assignment = given.pop(answer.attempt_token, None)
            if assignment is None:
                continue
            if answer.accepted:
                offered.pop(answer.attempt_token, None)
                self._refusals.pop((node_id, assignment.wants_memory), None)
                self._accepted.append((assignment.work_id, assignment.shared))
                self._news.set()
            elif answer.other_run and not offered[answer.attempt_token].certain:
                # It may have begun before the agent ended: its lease is left to end, which counts as an attempt.
                offered.pop(answer.attempt_token, None)
            else:
                token, short = answer.attempt_token, answer.short_of_memory
                self._refuse(node_id, offered, [token], answer.reason, short_of_memory=short)
        for token in given:
            offered[token].certain = False
        return not given

    async def _tell_observers(self) -> None:
        """Runs until cancelled: no node waits for it. Observers are told a few at a time, between what is urgent."""
        while True:
            await self._news.wait()
            for _ in range(min(OBSERVED_AT_A_STRETCH, len(self._accepted))):
                await self._tell(*self._accepted.popleft())
            if not self._accepted:
                self._news.clear()
            await asyncio.sleep(0)

    async def _tell(self, work_id: str, shared: bytes) -> None:
        try:
            await self._bus.publish(ASSIGNED, joined(Assignment, shared, **_FOR_THE_NODE))
        except Unavailable as error:
            _log.debug("observers_not_told", work_id=work_id, reason=error.message)

    def _nobody(self, node_id: str, offered: OrderedDict[str, _Offered], tokens: Sequence[str]) -> None:
        now = self._clock.monotonic()
        for token in tokens:
            entry = offered[token]
            if entry.unheard_since is None:
                entry.unheard_since = now
            if entry.certain and now - entry.unheard_since >= self._term.rules.offer_seconds:
                pause = self._term.rules.avoid_seconds
                self._refuse(node_id, offered, [token], "nobody answers there", pause)

    def _refuse(
        self,
        node_id: str,
        offered: OrderedDict[str, _Offered],
        tokens: Sequence[str],
        reason: str,
        pause_seconds: float | None = None,
        short_of_memory: bool = False,
    ) -> None:
        """The attempts did not begin: their items go back, and the node is left alone for a while, where memory was
        the reason with items that want some."""
        pause = self._growing_pause(node_id, short_of_memory) if pause_seconds is None else pause_seconds
        until = self._clock.monotonic() + pause
        told = reason[:200] or "it refused an attempt"
        if short_of_memory:
            self._term.nodes.short_of_memory(node_id, told, until)
        else:
            self._term.nodes.avoid(node_id, told, until)
        for token in tokens:
            entry = offered.pop(token, None)
            if entry is not None:
                self._term.meter.refused(node_id)
                _log.info("attempt_refused", work_id=entry.work_id, node_id=node_id, reason=reason)
                self._term.happen(entry.work_id, NodeRefused(token=token, detail=reason))

    def _growing_pause(self, node_id: str, short_of_memory: bool) -> float:
        """A slot that was freed a moment later than we thought is one thing, a node that only refuses another."""
        if len(self._refusals) > REFUSALS_REMEMBERED:
            self._refusals.clear()
        refused = (node_id, short_of_memory)
        self._refusals[refused] += 1
        doubled = FIRST_AVOIDANCE_SECONDS * 2.0 ** min(20, self._refusals[refused] - 1)
        return min(self._term.rules.avoid_seconds, doubled)

    async def _tell_stops(self, node_id: str) -> None:
        """Raises `SteppedDown`: one that was replaced while it stood still knows nothing of the attempts made since.

        If it stands still after it asked, the node refuses it by its epoch.
        """
        stops = self._stops.pop(node_id, None)
        if not stops:
            return
        tokens = tuple(stops)[:1000]
        reason = stops[tokens[0]] if len(set(stops.values())) == 1 else "no longer wanted"
        try:
            await self._term.journal.lead()
            asked = StopAttempts(
                epoch=self._term.epoch, log_made=self._term.log_made, attempt_tokens=tokens, reason=reason
            )
            await self._bus.request(STOP, asked, node_id=node_id)
        except SteppedDown:
            raise
        except MeshError as error:
            _log.info("stop_not_told", node_id=node_id, attempts=len(tokens), reason=error.message)


def _memory(asked: Requirements) -> JobMemory | None:
    wanted = promise(asked)
    return None if wanted is None else JobMemory.model_construct(**asdict(wanted), gpu_uuids=())
