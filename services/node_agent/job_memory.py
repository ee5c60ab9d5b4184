"""Memory that jobs are promised: claimed in this machine's ledger before they begin, given back when they are over."""

import asyncio
from collections.abc import Mapping
from hashlib import sha256

import structlog

from libs.common.clock import Clock
from libs.common.contracts.work_marshaling import Assignment
from libs.common.errors import Conflict, MeshError, NobodyAnswers, Unavailable
from services.node_agent.claims import Claims, Wanted
from services.node_agent.large import Large
from services.node_agent.model import Holder, JobFailed
from services.node_agent.runner import Runner

log = structlog.get_logger()

AGAIN_SECONDS = 2.0
FETCH_SECONDS = 2.0


class MemoryOfJobs:
    """A claim's id follows from the attempt's token, so that an attempt never has two, and one that is given back by a
    later run of the agent is the one that an earlier run made. How many GPUs a job is to have may stand in its payload:
    a large one is fetched for that."""

    def __init__(self, claims: Claims, large: Large, clock: Clock) -> None:
        self._claims = claims
        self._large = large
        self._clock = clock
        self._claimed: set[str] = set()
        self._committing: dict[str, asyncio.Task[None]] = {}

    async def claim_all(self, wanted: Mapping[str, tuple[Assignment, Runner]]) -> Mapping[str, "Assignment | str"]:
        """By token the assignment with the GPUs that it got, or why it cannot have what it is to be promised."""
        asking = [(token, self._claim(*each)) for token, each in wanted.items() if _claims_any(*each)]
        told = await asyncio.gather(*(claiming for _, claiming in asking))
        return {token: answer for (token, _), answer in zip(asking, told, strict=True)}

    def began(self, assignment: Assignment, holder: Holder) -> None:
        """From here on the claim is that of this process or container."""
        token = assignment.attempt_token or ""
        if assignment.memory is not None and token not in self._committing:
            self._claimed.add(token)  # perhaps by an earlier run of the agent
            self._committing[token] = asyncio.create_task(self._commit(token, holder), name="commit a job's memory")

    async def give_back(self, assignment: Assignment) -> None:
        token = assignment.attempt_token or ""
        committing = self._committing.pop(token, None)
        if committing is not None:
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
        if token in self._claimed:
            self._claimed.discard(token)
            await self._claims.release(_claim_id(token))

    async def give_back_what_was_left(self, assignment: Assignment) -> None:
        """Of an attempt that ended with an earlier run of the agent."""
        if assignment.memory is not None:
            await self._claims.release(_claim_id(assignment.attempt_token or ""))

    async def _claim(self, assignment: Assignment, runner: Runner) -> "Assignment | str":
        memory = assignment.memory
        assert memory is not None
        try:
            gpus = runner.gpus(await self._with_payload(assignment)) if memory.vram_mb else ()
        except JobFailed as error:
            # One that fails for good is taken, and ends by saying so.
            return error.message if error.error.retryable else assignment
        count = memory.gpu_count if gpus is None else len(gpus)
        wanted = Wanted(
            claim_id=_claim_id(assignment.attempt_token or ""),
            ram_mb=memory.ram_mb,
            vram_mb=memory.vram_mb if count else 0,
            gpu_count=count,
            gpu_uuids=gpus or None,
            purpose=f"{assignment.work_type} {assignment.work_id}",
        )
        try:
            got = await self._claims.reserve(wanted) if wanted.ram_mb or count else ()
        except NobodyAnswers as error:
            log.info("job_unclaimed", work=assignment.work_id, reason=error.message)
            return assignment
        except (Conflict, Unavailable) as error:
            runner.decline(assignment)
            return f"its memory cannot be promised: {error.message}"
        if wanted.ram_mb or count:
            self._claimed.add(assignment.attempt_token or "")
        return assignment.model_copy(update={"memory": memory.model_copy(update={"gpu_uuids": tuple(got)})})

    async def _with_payload(self, assignment: Assignment) -> Assignment:
        """Raises `JobFailed`; that it takes too long is no reason to keep the leader waiting."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._large.with_payload(assignment)
        except TimeoutError:
            late = f"its payload did not come within {FETCH_SECONDS:g} s"
            raise JobFailed("payload_unreachable", late, retryable=True) from None

    async def _commit(self, token: str, holder: Holder) -> None:
        while True:
            try:
                await self._claims.commit(_claim_id(token), pid=holder.pid, container_id=holder.container_id)
            except Unavailable:
                await self._clock.sleep(AGAIN_SECONDS)
            except MeshError as error:
                log.warning("job_memory_not_committed", claim=_claim_id(token), reason=error.message)
                return
            else:
                return


def _claims_any(assignment: Assignment, runner: Runner) -> bool:
    return assignment.memory is not None and runner.claims_memory


def _claim_id(token: str) -> str:
    return f"job/{sha256(token.encode()).hexdigest()[:40]}"
