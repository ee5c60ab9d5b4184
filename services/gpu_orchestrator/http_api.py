"""The HTTP door: which route leads to which method."""

from fastapi import APIRouter

from libs.common.contracts.gpu_orchestrator import GpuProcesses, GpuStates, MemoryState
from services.gpu_orchestrator.use_cases import GpuOrchestrator


def router(orchestrator: GpuOrchestrator) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["memory"])

    @routes.get("/gpu/states")
    async def states() -> GpuStates:
        """Every GPU, measured now."""
        return await orchestrator.states()

    @routes.get("/gpu/states/{uuid}/processes")
    async def processes(uuid: str) -> GpuProcesses:
        """Who uses one GPU, measured now."""
        return await orchestrator.processes(uuid)

    @routes.get("/memory")
    async def memory() -> MemoryState:
        """RAM and swap, measured now."""
        return await orchestrator.memory()

    return routes
