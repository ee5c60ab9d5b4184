"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Path

from libs.common.contracts.node_agent import Engines, Jobs, JobView
from services.node_agent.use_cases import NodeAgent

Token = Annotated[str, Path(min_length=1, max_length=256, description="an attempt token")]


def routes(agent: NodeAgent) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs", tags=["jobs"], summary="Attempts on this node: those that run, then those that ended last.")
    async def jobs() -> Jobs:
        return await agent.jobs()

    @router.get("/jobs/{token}", tags=["jobs"], summary="One attempt.")
    async def job(token: Token) -> JobView:
        return await agent.job(token)

    @router.get("/engines", tags=["engines"], summary="Engines on this machine, with what is measured of them.")
    async def engines() -> Engines:
        return await agent.engines()

    return router
