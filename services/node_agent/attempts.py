"""One attempt, from its first step to its outcome; and the slots that attempts take."""

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from libs.common.clock import Clock
from libs.common.contracts.node_registry import SlotPool
from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.job_memory import MemoryOfJobs
from services.node_agent.large import Large
from services.node_agent.model import JobFailed, Outcome, Running
from services.node_agent.outcomes import completed, failed
from services.node_agent.reports import Reports
from services.node_agent.runner import Runner

log = structlog.get_logger()

# What ended while no agent looked may still tell how, also after its time.
LEAST_SECONDS_TO_LOOK = 2.0


class Pool:
    """The slots of a runner. Taken before the first wait, so that two assignments never get the same one."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.taken = 0

    @property
    def free(self) -> int:
        return max(0, self.runner.slots - self.taken - self.runner.lingering) if self.runner.work_types() else 0

    def show(self, *, closed: bool) -> SlotPool:
        free = 0 if closed else self.free
        return SlotPool(work_types=self.runner.work_types(), slots=self.runner.slots, free_slots=free)


@dataclass(slots=True, eq=False)
class Job:
    """`taken_up_after`: seconds since it began, of one that an earlier run of the agent had begun."""

    running: Running
    pool: Pool
    taken_up_after: float | None = None
    task: "asyncio.Task[None] | None" = None
    begun: bool = False
    over: bool = False
    cut_short: bool = False
    stop_reason: str | None = None

    def cancel(self) -> None:
        """A task that is cancelled before its first step would never run, and never end its attempt; one whose job is
        over only tidies up."""
        self.cut_short = True
        if self.begun and not self.over and self.task is not None:
            self.task.cancel()


class Attempts:
    """Runs jobs to an outcome, whatever they do."""

    def __init__(self, clock: Clock, reports: Reports, large: Large, memory: MemoryOfJobs) -> None:
        self._clock = clock
        self._reports = reports
        self._large = large
        self._memory = memory

    async def outcome(self, job: Job) -> Outcome | None:
        """None when it was stopped: then nobody waits for an outcome."""
        running = job.running
        try:
            if job.cut_short:
                raise asyncio.CancelledError
            result = await self._result(job)
        except JobFailed as error:
            told = error.error
            return failed(
                told.code,
                told.message,
                retryable=told.retryable,
                started_at=running.started_at,
                ended_at=self._clock.now(),
            )
        except asyncio.CancelledError:
            return None if job.stop_reason is not None else self._failed(running, "agent_stopping", "the node stops")
        except Exception:
            log.exception("job_broke", work=running.assignment.work_id)
            return self._failed(running, "internal", "the node agent has a bug; its log tells more")
        return completed(result, started_at=running.started_at, ended_at=self._clock.now())

    async def _result(self, job: Job) -> Any:
        assignment = job.running.assignment
        seconds, by_deadline = self._limit_for(assignment)
        if job.taken_up_after is not None:
            seconds = max(seconds - job.taken_up_after, LEAST_SECONDS_TO_LOOK)
        if seconds <= 0:
            raise _too_late(assignment, by_deadline=by_deadline)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                taken_up = job.taken_up_after is not None
                whole = assignment if taken_up else await self._large.with_payload(assignment)
                return await job.pool.runner.run(
                    whole,
                    lambda text: self._reports.produced(job.running, text),
                    lambda holder: self._memory.began(assignment, holder),
                )
        except TimeoutError:
            if not limit.expired():
                raise
            raise _too_late(assignment, by_deadline=by_deadline) from None

    def _limit_for(self, assignment: Assignment) -> tuple[float, bool]:
        """How long an attempt may take, and whether it is the item's deadline that says so."""
        seconds = assignment.timeout_seconds
        if assignment.deadline is None:
            return seconds, False
        left = (assignment.deadline - self._clock.now()).total_seconds()
        return min(left, seconds), left <= seconds

    def _failed(self, running: Running, code: str, message: str) -> Outcome:
        return failed(code, message, retryable=True, started_at=running.started_at, ended_at=self._clock.now())


def _too_late(assignment: Assignment, *, by_deadline: bool) -> JobFailed:
    if by_deadline and assignment.deadline is not None:
        deadline = assignment.deadline.isoformat()
        return JobFailed("deadline_passed", f"the item's deadline, {deadline}, has passed", retryable=False)
    return JobFailed("timed_out", f"the attempt took longer than {assignment.timeout_seconds:g} s", retryable=True)
