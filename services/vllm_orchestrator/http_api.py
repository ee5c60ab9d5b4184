"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Query

from libs.common.contracts.vllm_orchestrator import PlacedEngines, ServedModels
from services.vllm_orchestrator.use_cases import VllmOrchestrator

ModelName = Annotated[str | None, Query(min_length=1, max_length=256, description="only engines that serve this")]


def routes(orchestrator: VllmOrchestrator) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["engines"])

    @router.get("/engines", summary="Every engine of the mesh: where it is and what it serves.")
    async def engines(model_name: ModelName = None) -> PlacedEngines:
        return await orchestrator.engines(model_name)

    @router.get("/models", summary="Every model that is served, and by how much.")
    async def models() -> ServedModels:
        return await orchestrator.models()

    return router
