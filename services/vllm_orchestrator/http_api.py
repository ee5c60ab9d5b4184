"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Query

from libs.common.contracts.vllm_orchestrator import (
    FittingModels,
    PlacedEngines,
    PlanAnswer,
    PlanRequest,
    ServedModels,
    Strategies,
)
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.use_cases import VllmOrchestrator

ModelName = Annotated[str | None, Query(min_length=1, max_length=256, description="only engines that serve this")]
Length = Annotated[int, Query(ge=1, le=2**31, description="tokens; a model that knows fewer is planned with those")]
Concurrency = Annotated[float, Query(ge=1, le=1_000_000, description="requests of that length at once")]


def routes(orchestrator: VllmOrchestrator, planning: Planning) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    router.include_router(_served(orchestrator))
    router.include_router(_planned(planning))
    return router


def _served(orchestrator: VllmOrchestrator) -> APIRouter:
    router = APIRouter(tags=["engines"])

    @router.get("/engines", summary="Every engine of the mesh: where it is and what it serves.")
    async def engines(model_name: ModelName = None) -> PlacedEngines:
        return await orchestrator.engines(model_name)

    @router.get("/models", summary="Every model that is served, and by how much.")
    async def models() -> ServedModels:
        return await orchestrator.models()

    return router


def _planned(planning: Planning) -> APIRouter:
    router = APIRouter(prefix="/vllm", tags=["plans"])

    @router.post("/plan", summary="How a model would be served; nothing is reserved or started.")
    async def plan(request: PlanRequest) -> PlanAnswer:
        return await planning.plan(request)

    @router.get("/strategies", summary="The ways in which a model can be spread over devices.")
    async def strategies() -> Strategies:
        return await planning.strategies()

    @router.get("/models", summary="Which models of the catalogue fit the machines that are online now.")
    async def fitting(max_model_len: Length = 8192, concurrency: Concurrency = 1.0) -> FittingModels:
        return await planning.fitting(max_model_len, concurrency)

    return router
