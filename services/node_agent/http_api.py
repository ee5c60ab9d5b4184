"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from libs.common.contracts.node_agent import AgentDraining, DrainAgent, Engines, JobLog, Jobs, JobView
from services.node_agent.use_cases import NodeAgent

JobId = Annotated[
    str, Path(min_length=3, max_length=160, description="`work_id`, `@`, the attempt's number: `item-1@1`")
]

After = Annotated[int, Query(ge=0, le=2**53, description="only what came after so many characters: follow with this")]
Tail = Annotated[int | None, Query(ge=0, le=100_000, description="of that only so many lines from the end")]


def routes(agent: NodeAgent) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs", tags=["jobs"], summary="Attempts on this node: those that run, then those that ended last.")
    async def jobs() -> Jobs:
        return await agent.jobs()

    @router.get("/jobs/{job_id}", tags=["jobs"], summary="One attempt.")
    async def job(job_id: JobId) -> JobView:
        return await agent.job(job_id)

    @router.get("/jobs/{job_id}/logs", tags=["jobs"], summary="What a job has written so far, of long output the end.")
    async def log_of(job_id: JobId, after: After = 0, tail: Tail = None) -> JobLog:
        return await agent.log_of(job_id, after=after, lines=tail)

    @router.get("/drain", tags=["drain"], summary="Whether this node takes work.")
    async def draining() -> AgentDraining:
        return agent.draining_now()

    @router.post("/drain", tags=["drain"], summary="Finish what runs and take nothing more, also after a restart.")
    async def drain(request: DrainAgent | None = None) -> AgentDraining:
        return await agent.drain(request or DrainAgent())

    @router.post("/undrain", tags=["drain"], summary="Take work again, unless the registry has this node drained too.")
    async def undrain() -> AgentDraining:
        return await agent.undrain()

    @router.get("/engines", tags=["engines"], summary="Engines on this machine, with what is measured of them.")
    async def engines() -> Engines:
        return await agent.engines()

    return router
