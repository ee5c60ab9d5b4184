"""A queue in memory with a clock of the test's own, and a node that does what the test says."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

from libs.common.archive.archive_memory import MemoryArchive
from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import WORKLOAD
from libs.common.contracts.streams import (
    DEAD_LETTERS,
    WORK_DONE,
    WORK_IN,
    WORK_LOG,
    WORK_MARSHALING,
    WORK_OBJECTS,
    WORK_OUT,
)
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    COMPLETED,
    FAILED,
    PROGRESS,
    STOP,
    SUBMIT,
    Assignment,
    AssignmentAnswer,
    AssignmentAnswers,
    Assignments,
    AttemptProgress,
    AttemptsStopped,
    StopAttempts,
    WorkCompleted,
    WorkError,
    WorkFailed,
    WorkItem,
    WorkLookup,
    WorkProgress,
    WorkStatus,
    WorkView,
)
from libs.common.contracts.work_outcomes import OUTCOMES, WorkOutcomes
from libs.common.errors import Unavailable
from services.work_marshaling import nats_api
from services.work_marshaling.again import Again
from services.work_marshaling.archiving import Archiving
from services.work_marshaling.asking import Asking
from services.work_marshaling.blacklisting import Blacklisting, watch_conduct
from services.work_marshaling.election import Election
from services.work_marshaling.election import Instance as Identity
from services.work_marshaling.explanations import Explanations
from services.work_marshaling.following import Following, Watchers
from services.work_marshaling.handing import Handing
from services.work_marshaling.hearing import Hearing
from services.work_marshaling.large import Large
from services.work_marshaling.leading import Leading
from services.work_marshaling.meter import Role
from services.work_marshaling.model import Policy, Rules
from services.work_marshaling.records import EarlierIds, Records
from services.work_marshaling.submission import Submissions
from services.work_marshaling.term import Chances
from services.work_marshaling.use_cases import WorkMarshaling
from services.work_marshaling.wiring import SCHEMA
from tests.unit.work_marshaling.builders import workload

T = TypeVar("T")
RULES = Rules(policy=Policy(retry_max=2, retry_delay_seconds=5.0))
LEASE_SECONDS = 3


class QuietMeter:
    def appended(self, seconds: float, facts: int) -> None: ...
    def assigned(self, seconds_since_submission: float) -> None: ...
    def lease_expired(self) -> None: ...
    def refused(self, node_id: str) -> None: ...
    def stream_fill(self, stream: str, ratio: float) -> None: ...
    def became(self, role: Role) -> None: ...


class Instance:
    """One running work marshaling. `ended` holds what made it end."""

    def __init__(
        self,
        bus: Bus,
        marshaling: WorkMarshaling,
        asking: Asking,
        archiving: Archiving,
        leading: Leading,
        again: Again,
        following: Following,
        explanations: Explanations,
        blacklisting: Blacklisting,
        election: Election,
        handing: Handing,
        large: Large,
    ) -> None:
        self.blacklisting = blacklisting
        self.explanations = explanations
        self.large = large
        self.again = again
        self.following = following
        self.bus = bus
        self.handing = handing
        self.election = election
        self.marshaling = marshaling
        self.asking = asking
        self.archiving = archiving
        self.leading = leading
        self.ended: BaseException | None = None


class House:
    """`stream_bytes` makes all streams that small."""

    def __init__(self, stream_bytes: int | None = None) -> None:
        streams = (WORK_IN, WORK_OUT, WORK_LOG, WORK_DONE, WORK_OBJECTS.stream, DEAD_LETTERS)
        self._streams = [replace(each, max_bytes=stream_bytes or each.max_bytes) for each in streams]
        self.clock = ManualClock()
        self.archive = MemoryArchive()
        self.server = MemoryServer(clock=self.clock)
        self._numbers = itertools.count()

    def _token(self) -> str:
        return f"t{next(self._numbers)}"

    @asynccontextmanager
    async def bus(self, name: str) -> AsyncIterator[Bus]:
        async with self.server.connect(name) as transport:
            for stream in self._streams:
                await transport.ensure_stream(stream)
            await transport.ensure_bucket(WORK_MARSHALING)
            yield Bus(transport, name=name, observer=SilentObserver(), clock=self.clock)

    @asynccontextmanager
    async def marshaling(self, rules: Rules = RULES) -> AsyncIterator[Instance]:
        """One that leads. Leaving the block is a `kill -9`: nothing is told, nothing is flushed."""
        async with self.instance(rules) as instance:
            await self.led_by(instance)
            yield instance

    async def led_by(self, instance: Instance) -> None:
        """Wait until it leads; time passes meanwhile."""

        async def leads() -> bool | None:
            await self.settle()
            return instance.leading.leads() or None

        await self.eventually(leads)

    @asynccontextmanager
    async def instance(self, rules: Rules = RULES) -> AsyncIterator[Instance]:
        """One that leads if nobody else does."""
        async with self.bus("work_marshaling") as bus:
            records = Records(self.archive)
            large = Large(bus, self.clock)
            earlier = EarlierIds(records, self.clock, keep=timedelta(seconds=rules.remembered_keep_seconds))
            archiving = Archiving(
                bus=bus,
                clock=self.clock,
                archive=self.archive,
                schema=SCHEMA,
                earlier=earlier,
                large=large,
                keep_days=30,
            )
            watchers = Watchers(self.clock, self._token)
            me = Identity(instance_id=self._token(), node_id="here", port=0)
            election = Election(bus=bus, clock=self.clock, instance=me, lease_seconds=LEASE_SECONDS)
            leading = Leading(
                bus=bus,
                clock=self.clock,
                rules=rules,
                chances=Chances(number=lambda: 0.5, token=self._token),
                meter=QuietMeter(),
                new_id=self._token,
                earlier=earlier,
                watch=watchers,
                large=large,
                companions=[archiving.serve, watchers.serve, partial(watch_conduct, bus, self.clock)],
                election=election,
            )
            submissions = Submissions(bus, self._token)
            asking = Asking(leading=leading, records=records, pending=archiving.pending)
            marshaling = WorkMarshaling(
                clock=self.clock,
                leading=leading,
                submissions=submissions,
                asking=asking,
                large=large,
                new_id=self._token,
            )
            again = Again(
                clock=self.clock, leading=leading, records=records, asking=asking, marshaling=marshaling, large=large
            )
            blacklisting = Blacklisting(bus=bus, clock=self.clock, leading=leading)
            following = Following(asking=asking, watchers=watchers)
            handing = Handing(bus=bus, leading=leading, instance_id=me.instance_id)
            explanations = Explanations(leading=leading, asking=asking)
            instance = Instance(
                bus,
                marshaling,
                asking,
                archiving,
                leading,
                again,
                following,
                explanations,
                blacklisting,
                election,
                handing,
                large,
            )
            hearing = Hearing(clock=self.clock, leading=leading, watchers=watchers)
            await nats_api.open_door(marshaling, asking, explanations, hearing, handing, bus)
            running = (leading.run(), submissions.run(), archiving.writer.run())
            loops = [asyncio.create_task(each) for each in running]
            loops[0].add_done_callback(lambda task: _note_end(instance, task))
            try:
                await self.settle()
                yield instance
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        for _ in range(200):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """In small steps, as time does."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            for _ in range(20):
                await asyncio.sleep(0)
        await self.settle()

    async def eventually(self, look: Callable[[], Awaitable[T | None]], seconds: float = 5.0) -> T:
        """Look until there is something; time passes meanwhile."""
        for _ in range(int(seconds / 0.1)):
            found = await look()
            if found:
                return found
            await self.pass_time(0.1)
        raise AssertionError("it did not happen")


def _note_end(instance: Instance, task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        instance.ended = task.exception()


class Node:
    """Takes what it is given and does nothing by itself."""

    def __init__(self, house: House, bus: Bus, node_id: str) -> None:
        self.node_id = node_id
        self.taken: list[Assignment] = []
        self.stopped: list[str] = []
        self.stops: list[StopAttempts] = []
        self.offers: list[Assignments] = []
        self.accepts = True
        self.answers = True
        self.hangs = False
        self.other_run = False
        self.memory_left: int | None = None
        self._house = house
        self._bus = bus

    async def open(self, **fields: object) -> None:
        await self._bus.serve(ASSIGN, self._assign, node_id=self.node_id)
        await self._bus.serve(STOP, self._stop, node_id=self.node_id)
        await self.announce(**fields)

    async def announce(self, **fields: object) -> None:
        await self._bus.publish(WORKLOAD, workload(self.node_id, **fields))  # type: ignore[arg-type]
        await self._house.settle()

    async def _assign(self, asked: Assignments) -> AssignmentAnswers:
        self.offers.append(asked)
        if self.hangs:
            await asyncio.Future()
        if not self.answers:
            raise Unavailable("nothing was heard")
        answers = []
        for each in asked.assignments:
            short = self.memory_left is not None and each.memory is not None and each.memory.ram_mb > self.memory_left
            accepted = self.accepts and not short and not self.other_run
            if accepted:
                self.taken.append(each)
            token = each.attempt_token or ""
            answers.append(
                AssignmentAnswer(
                    attempt_token=token,
                    accepted=accepted,
                    reason="full",
                    short_of_memory=short,
                    other_run=self.other_run,
                )
            )
        return AssignmentAnswers(boot_id="b1", answers=tuple(answers))

    async def _stop(self, asked: StopAttempts) -> AttemptsStopped:
        self.stops.append(asked)
        self.stopped.extend(asked.attempt_tokens)
        return AttemptsStopped(stopped=asked.attempt_tokens, unknown=())

    async def takes(self, count: int = 1) -> Assignment:
        """Wait until it was given so many in all; the newest."""

        async def enough() -> Assignment | None:
            return self.taken[-1] if len(self.taken) >= count else None

        return await self._house.eventually(enough, seconds=60)

    async def complete(self, given: Assignment, result: object = "done") -> None:
        told = {"work_id": given.work_id, "attempt_token": given.attempt_token, "node_id": self.node_id}
        await self._bus.append(COMPLETED, WorkCompleted.model_validate(told | {"result": result}), message_id=None)
        await self._house.settle()

    async def complete_together(self, results: Mapping[str, object], *given: Assignment) -> None:
        """`results` by the ids of their items."""
        completed = [
            {"work_id": each.work_id, "attempt_token": each.attempt_token, "result": results[each.work_id]}
            for each in given
        ]
        await self._bus.append(OUTCOMES, WorkOutcomes.model_validate({"completed": completed}), message_id=None)
        await self._house.settle()

    async def fail(self, given: Assignment, *, retryable: bool = True, code: str = "broken") -> None:
        error = WorkError(code=code, message="it broke", retryable=retryable)
        told = WorkFailed(work_id=given.work_id, attempt_token=given.attempt_token, node_id=self.node_id, error=error)
        await self._bus.append(FAILED, told, message_id=None)
        await self._house.settle()

    async def progress(self, given: Assignment, text: str | None = None) -> None:
        attempt = AttemptProgress(attempt_token=given.attempt_token or "", work_id=given.work_id, text=text)
        told = WorkProgress(node_id=self.node_id, boot_id="b1", at=self._house.clock.now(), attempts=(attempt,))
        await self._bus.publish(PROGRESS, told)
        await self._house.settle()


async def submit(instance: Instance, **fields: object) -> str:
    item = WorkItem.model_validate({"work_type": "chat", "payload": {"prompt": "hi"}} | fields)
    return (await instance.marshaling.submit(item)).work_id


async def publish_plainly(bus: Bus, **fields: object) -> None:
    """As a stranger does: no acknowledgement, no id."""
    item = WorkItem.model_validate({"work_type": "chat", "payload": {"prompt": "hi"}} | fields)
    await bus.publish(SUBMIT, item)


async def view_of(instance: Instance, work_id: str) -> WorkView:
    return await instance.asking.look_up(WorkLookup(work_id=work_id))


async def status_of(instance: Instance, work_id: str) -> WorkStatus:
    return (await view_of(instance, work_id)).status
