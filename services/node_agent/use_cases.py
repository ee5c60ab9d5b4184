"""Takes attempts, runs them, ends them: never one twice, never one without an outcome."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta

import structlog

from libs.common.clock import Clock
from libs.common.contracts.base import is_of_another_run
from libs.common.contracts.node_agent import AgentDraining, DrainAgent, Engines, EngineView, JobLog, Jobs, JobView
from libs.common.contracts.node_registry import Engine, NodeStatus, SlotPool
from libs.common.contracts.work_leading import FromLeader
from libs.common.contracts.work_marshaling import (
    Assignment,
    AssignmentAnswers,
    Assignments,
    AttemptsStopped,
    StopAttempts,
)
from libs.common.errors import Conflict, NotFound, Unavailable
from services.node_agent.attempts import Attempts, Job, Pool
from services.node_agent.draining import Draining
from services.node_agent.engine import EngineDoor
from services.node_agent.job_memory import MemoryOfJobs
from services.node_agent.large import Large
from services.node_agent.leaders import Leaders
from services.node_agent.model import Attempt, KeptOutput, Outcome, Running
from services.node_agent.observer import AgentObserver
from services.node_agent.outbox import Outbox
from services.node_agent.outcomes import failed
from services.node_agent.refusals import Refusal, answers
from services.node_agent.reports import Reports
from services.node_agent.store import Journal
from services.node_agent.views import job_id, log_from, view_of_kept, view_of_running

log = structlog.get_logger()

REMEMBERED = timedelta(hours=24)
REMEMBERED_ATTEMPTS = 100_000
SHOWN_JOBS = 200
MOST_UNDELIVERED = 2000


class NodeAgent:
    """`pools` say what this machine can run; they and `engines` may change from outside.

    The outbox delivers outcomes; the reports tell what runs.
    """

    def __init__(
        self,
        *,
        boot_id: str,
        clock: Clock,
        journal: Journal,
        outbox: Outbox,
        reports: Reports,
        large: Large,
        memory: MemoryOfJobs,
        draining: Draining,
        observer: AgentObserver,
        pools: Sequence[Pool],
        engines: Sequence[EngineDoor],
    ) -> None:
        self._boot_id = boot_id
        self._clock = clock
        self._journal = journal
        self._outbox = outbox
        self._reports = reports
        self._observer = observer
        self._pools = pools
        self._engines = engines
        self._jobs: dict[str, Job] = {}
        self._runs = frozenset((boot_id,))
        self._attempts = Attempts(clock, reports, large, memory)
        self._memory = memory
        self._draining = draining
        self._leaders = Leaders()

    # What others ask

    async def assign(self, request: Assignments) -> AssignmentAnswers:
        """Take what there is a free slot for. What is answered `accepted` is in the journal before the answer.

        What was never told before cannot have begun: it begins when it is written, before it is on disk. Raises
        `Conflict` for a leader that was replaced, `Unavailable` when nothing can be written.
        """
        self._refuse_replaced(request)
        refused: dict[str, Refusal] = {}
        taken: dict[str, tuple[Assignment, Pool]] = {}
        for assignment in request.assignments:
            token = assignment.attempt_token or ""
            if token not in self._jobs and token not in taken:
                pool = self._pool_for(assignment, refused)
                if pool is not None:
                    pool.taken += 1
                    taken[token] = (assignment, pool)
        on_disk: Awaitable[None] | None = None
        try:
            await self._with_memory(taken, refused)
            if request.again:
                await self._leave_out_known(taken, refused)
            elif taken:
                on_disk = self._journal.begin([assignment for assignment, _ in taken.values()], self._clock.now())
        except BaseException:
            self._give_back(pool for _, pool in taken.values())
            await asyncio.gather(*(self._memory.give_back(assignment) for assignment, _ in taken.values()))
            raise
        for assignment, pool in taken.values():
            self._begin(assignment, pool)
        if on_disk is not None:
            await self._until_on_disk(on_disk)
        for _ in refused:
            self._observer.refused()
        return answers(self._boot_id, request, refused)

    async def stop(self, request: StopAttempts) -> AttemptsStopped:
        """End these attempts. Their outcomes are told only if they are known already.

        Raises `Conflict` for a leader that was replaced: it knows nothing of the attempts that were made since.
        """
        self._refuse_replaced(request)
        stopped: list[str] = []
        ending: list[asyncio.Task[None]] = []
        for token in request.attempt_tokens:
            job = self._jobs.get(token)
            if job is not None and job.task is not None:
                job.stop_reason = job.stop_reason or request.reason
                job.cancel()
                ending.append(job.task)
                stopped.append(token)
        await asyncio.gather(*ending, return_exceptions=True)
        over = await self._journal.known([token for token in request.attempt_tokens if token not in stopped])
        stopped.extend(over)
        unknown = [token for token in request.attempt_tokens if token not in stopped]
        return AttemptsStopped(stopped=tuple(stopped), unknown=tuple(unknown))

    async def jobs(self) -> Jobs:
        """What runs, then what ended last."""
        running = [view_of_running(job.running) for job in self._jobs.values()]
        recent = await self._journal.recent(SHOWN_JOBS)
        over = [view_of_kept(attempt) for attempt in recent if attempt.token not in self._jobs]
        return Jobs(jobs=(*running, *over), running=len(running), undelivered=self._outbox.undelivered)

    async def job(self, shown: str) -> JobView:
        """Raises `NotFound`."""
        job = self._shown_as(shown)
        return view_of_running(job.running) if job is not None else view_of_kept(await self._kept(shown))

    async def log_of(self, shown: str, *, after: int, lines: int | None) -> JobLog:
        """What the job wrote, of that the last lines. Raises `NotFound`."""
        job = self._shown_as(shown)
        if job is not None:
            output = job.running.output
            kept = KeptOutput(text=output.text(), before=output.before)
        else:
            found = await self._kept(shown)
            kept = await self._journal.output(found.token) or KeptOutput(text="", before=0)
        return log_from(shown, kept, over=job is None, after=after, lines=lines)

    async def drain(self, request: DrainAgent) -> AgentDraining:
        await self._draining.ask_of_owner(request.reason)
        return self.draining_now()

    async def undrain(self) -> AgentDraining:
        await self._draining.ask_of_owner(None)
        return self.draining_now()

    def draining_now(self) -> AgentDraining:
        reason = self._draining.reason()
        return AgentDraining(
            draining=reason is not None, reason=reason or "", by=self._draining.by, running=len(self._jobs)
        )

    async def node_status(self, status: NodeStatus) -> None:
        """The registry told something about a node, perhaps this one."""
        self._draining.heard(status)

    async def engines(self) -> Engines:
        return Engines(engines=self.engine_views())

    async def discovered(self) -> None:
        """Somebody asked all nodes to show themselves."""
        self._reports.workload_changed()

    # What the rest of the agent asks

    def engine_views(self) -> tuple[EngineView, ...]:
        return tuple(engine.view() for engine in self._engines)

    def engine_states(self) -> tuple[Engine, ...]:
        return tuple(engine.now() for engine in self._engines)

    def running(self) -> list[Running]:
        return [job.running for job in self._jobs.values() if job.stop_reason is None]

    def pools(self) -> list[SlotPool]:
        closed = self._takes_nothing() is not None
        return [pool.show(closed=closed) for pool in self._pools]

    @property
    def draining(self) -> bool:
        return self._draining.reason() is not None

    # Its own life

    async def recover(self) -> None:
        """Account for what an earlier run of the agent left: what still runs is gone on with, nothing is run again."""
        await self._draining.remember()
        self._runs = await self._journal.runs(self._boot_id)
        left = await self._journal.open_attempts()
        going_on = await self._go_on_with([attempt for attempt in left if attempt.outcome is None])
        lost = [attempt for attempt in left if attempt.outcome is None and attempt.token not in going_on]
        for attempt in left:
            if attempt.outcome is not None:
                self._outbox.resume(attempt.assignment, attempt.outcome)
        now = self._clock.now()
        outcome = failed(
            "agent_restarted", "the node agent ended while this ran", retryable=True, started_at=None, ended_at=now
        )
        await asyncio.gather(*(self._memory.give_back_what_was_left(attempt.assignment) for attempt in lost))
        await asyncio.gather(*(self._outbox.end(attempt.assignment, outcome) for attempt in lost))
        if left:
            undelivered = len(left) - len(lost) - len(going_on)
            log.info("recovered", going_on=len(going_on), cut_short=len(lost), undelivered=undelivered)

    async def forget(self) -> None:
        """Remove what is over for long from the journal."""
        await self._journal.forget(before=self._clock.now() - REMEMBERED, keep=REMEMBERED_ATTEMPTS)

    async def finish(self, seconds: float) -> None:
        """Take nothing more; let jobs finish, so long at most; report the rest as failed."""
        self._draining.stop()
        jobs = list(self._jobs.values())
        tasks = [job.task for job in jobs if job.task is not None]
        if tasks and seconds > 0:
            await asyncio.wait(tasks, timeout=seconds)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refuse_replaced(self, request: FromLeader) -> None:
        newest = self._leaders.replaced(request.log_made, request.epoch)
        if newest is not None:
            log.warning("replaced_leader_refused", epoch=request.epoch, newest=newest)
            raise Conflict(f"epoch {request.epoch} is over here: a leader of epoch {newest} was heard", epoch=newest)

    def _pool_for(self, assignment: Assignment, refused: dict[str, Refusal]) -> Pool | None:
        token = assignment.attempt_token
        takes_nothing = self._takes_nothing()
        reason = takes_nothing or f"no {assignment.work_type} is done here"
        if not token:
            refused[""] = Refusal(reason="an assignment to a node must carry an attempt token")
            return None
        if is_of_another_run(token, self._runs):
            reason = "it was given to a run of this agent that nothing is known of"
            refused[token] = Refusal(reason=reason, other_run=True)
            return None
        for pool in () if takes_nothing else self._pools:
            if assignment.work_type not in pool.runner.work_types():
                reason = _nearer(reason, pool.runner.refusal(assignment))
            elif (why := pool.runner.refusal(assignment)) is not None:
                reason = why
            elif pool.free <= 0:
                reason = "no slot is free"
            else:
                return pool
        refused[token] = Refusal(reason=reason)
        return None

    def _shown_as(self, shown: str) -> Job | None:
        """The one that runs under this id."""
        return next((job for job in self._jobs.values() if job_id(job.running.assignment) == shown), None)

    async def _kept(self, shown: str) -> Attempt:
        """Raises `NotFound`."""
        work_id, _, number = shown.rpartition("@")
        for attempt in await self._journal.attempts_at(work_id):
            if str(attempt.assignment.attempt) == number:
                return attempt
        raise NotFound(f"there is no job {shown[:200]!r} on this node", job_id=shown[:200])

    async def _with_memory(self, taken: dict[str, tuple[Assignment, Pool]], refused: dict[str, Refusal]) -> None:
        """Claim what the jobs are promised. Who cannot have it is refused for this alone."""
        wanted = {token: (each, pool.runner) for token, (each, pool) in taken.items() if each.memory is not None}
        if not wanted:
            return
        told = await self._memory.claim_all(wanted)
        short = {
            token: Refusal(reason=why, short_of_memory=True) for token, why in told.items() if isinstance(why, str)
        }
        self._give_back(taken.pop(token)[1] for token in short)
        refused |= short
        taken |= {token: (got, taken[token][1]) for token, got in told.items() if not isinstance(got, str)}

    async def _leave_out_known(self, taken: dict[str, tuple[Assignment, Pool]], refused: dict[str, Refusal]) -> None:
        """Journal them; what the journal had before is accepted, and does not begin again."""
        fresh = await self._journal.accept([assignment for assignment, _ in taken.values()], self._clock.now())
        for token in await self._journal.known(list(refused)) if refused else ():
            del refused[token]
        known = [taken.pop(token) for token in taken.keys() - fresh]
        self._give_back(pool for _, pool in known)
        for assignment, _ in known:
            await self._memory.give_back(assignment)

    async def _until_on_disk(self, on_disk: Awaitable[None]) -> None:
        """What cannot be synced is accepted all the same, for it runs."""
        try:
            await on_disk
        except Unavailable as error:
            log.error("attempts_not_synced", reason=error.message)

    def _give_back(self, pools: Iterable[Pool]) -> None:
        for pool in pools:
            pool.taken -= 1
        self._reports.workload_changed()

    def _takes_nothing(self) -> str | None:
        """Why nothing is taken, whatever it is."""
        if self._outbox.undelivered >= MOST_UNDELIVERED:
            return f"{self._outbox.undelivered} outcomes wait here to be delivered"
        return self._draining.reason()

    async def _go_on_with(self, attempts: Sequence[Attempt]) -> frozenset[str]:
        """Take up the jobs that outlived the agent that began them."""
        assignments = [attempt.assignment for attempt in attempts]
        taken: set[str] = set()
        for pool in self._pools:
            still_there = await pool.runner.left(assignments)
            for attempt in attempts:
                if attempt.token in still_there:
                    pool.taken += 1
                    taken.add(attempt.token)
                    self._begin(attempt.assignment, pool, since=attempt.accepted_at)
        return frozenset(taken)

    def _begin(self, assignment: Assignment, pool: Pool, *, since: datetime | None = None) -> None:
        """`since`: when an earlier run of the agent began it."""
        now = self._clock.now()
        running = Running(assignment=assignment, accepted_at=since or now, started_at=since or now)
        job = Job(running, pool, taken_up_after=(now - since).total_seconds() if since else None)
        self._jobs[assignment.attempt_token or ""] = job
        job.task = asyncio.get_running_loop().create_task(self._attempt(job), name=f"attempt {assignment.work_id}")
        self._observer.accepted(assignment.work_type)
        self._reports.started(job.running)

    async def _attempt(self, job: Job) -> None:
        """One attempt from its start to its journaled end."""
        assignment = job.running.assignment
        job.begun = True
        outcome = await self._attempts.outcome(job)
        job.over = True
        if assignment.memory is not None:
            await self._memory.give_back(assignment)
        job.pool.taken -= 1
        try:
            await self._close(job, outcome)
            await self._keep_output(job)
            await job.pool.runner.forget(assignment)
        finally:
            del self._jobs[assignment.attempt_token or ""]
            self._reports.workload_changed()

    async def _close(self, job: Job, outcome: Outcome | None) -> None:
        assignment = job.running.assignment
        if outcome is None:
            self._observer.ended(assignment.work_type, "stopped")
            log.info("attempt_stopped", work=assignment.work_id, reason=job.stop_reason)
            await self._note_stopped(assignment)
            return
        self._observer.ended(assignment.work_type, outcome.error.code if outcome.error else "completed")
        if outcome.error is not None:
            log.info("attempt_failed", work=assignment.work_id, code=outcome.error.code, reason=outcome.error.message)
        await self._outbox.end(assignment, outcome)

    async def _keep_output(self, job: Job) -> None:
        output = job.running.output
        if not output.kept:
            return
        try:
            kept = KeptOutput(text=output.text(), before=output.before)
            await self._journal.keep_output(job.running.assignment.attempt_token or "", kept)
        except Unavailable as error:
            log.warning("output_not_kept", work=job.running.assignment.work_id, reason=error.message)

    async def _note_stopped(self, assignment: Assignment) -> None:
        try:
            await self._journal.stopped(assignment.attempt_token or "", self._clock.now())
        except Unavailable as error:
            log.error("stop_not_journaled", work=assignment.work_id, reason=error.message)


def _nearer(reason: str, refusal: str | None) -> str:
    """An engine that is away explains more than "not done here"."""
    return f"{reason} now: {refusal}" if refusal else reason
