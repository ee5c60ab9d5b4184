"""The HTTP door: which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Query

from libs.common.contracts.base import Identifier
from libs.common.contracts.gpu_orchestrator import (
    Commit,
    CommitBody,
    FitAnswer,
    FitQuestion,
    GpuHistory,
    GpuProcesses,
    GpuStates,
    MemoryHistory,
    MemoryState,
    Release,
    Renew,
    RenewBody,
    Reservation,
    Reservations,
    ReserveRequest,
    Token,
)
from services.gpu_orchestrator.use_cases import GpuOrchestrator

Node = Annotated[Identifier | None, Query(description="another node, which is asked in your name")]

Copied = Annotated[Identifier | None, Query(description="another node: its open ones, from the copy in NATS")]
Seconds = Annotated[float, Query(ge=1, le=86400, description="how far back")]


def router(orchestrator: GpuOrchestrator) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["memory"])
    _reserved(routes, orchestrator)
    _measured(routes, orchestrator)
    return routes


def _reserved(routes: APIRouter, orchestrator: GpuOrchestrator) -> None:
    @routes.post("/gpu/reserve")
    async def reserve(asked: ReserveRequest) -> Reservation:
        """Keep memory: all that is wanted, or none."""
        return await orchestrator.reserve(asked)

    @routes.delete("/gpu/reservations/{reservation_id:path}")
    async def release(reservation_id: Identifier, token: Token | None = None, node_id: Node = None) -> Reservation:
        """Give it back."""
        return await orchestrator.release(Release(reservation_id=reservation_id, token=token), node_id)

    @routes.post("/gpu/can-fit")
    async def can_fit(asked: FitQuestion) -> FitAnswer:
        """Whether it would fit now, where, and if not what is in the way."""
        return await orchestrator.can_fit(asked)

    @routes.get("/gpu/reservations")
    async def reservations(only_open: bool = True, node_id: Copied = None) -> Reservations:
        """This node's reservations, the oldest first; also the last ones that ended, when asked for."""
        return await orchestrator.reservations_of(node_id, only_open=only_open)

    @routes.get("/gpu/reservations/{reservation_id:path}")
    async def reservation(reservation_id: Identifier) -> Reservation:
        return orchestrator.reservation(reservation_id)

    @routes.post("/gpu/reservations/{reservation_id:path}/renew")
    async def renew(reservation_id: Identifier, body: RenewBody | None = None, node_id: Node = None) -> Reservation:
        """It lives on for its timeout, from now."""
        told = (body or RenewBody()).model_dump()
        return await orchestrator.renew(Renew(reservation_id=reservation_id, **told), node_id)

    @routes.post("/gpu/reservations/{reservation_id:path}/commit")
    async def commit(reservation_id: Identifier, body: CommitBody, node_id: Node = None) -> Reservation:
        """From now on it is that of a process or container, and ends with it."""
        return await orchestrator.commit(Commit(reservation_id=reservation_id, **body.model_dump()), node_id)


def _measured(routes: APIRouter, orchestrator: GpuOrchestrator) -> None:
    @routes.get("/gpu/states")
    async def states() -> GpuStates:
        """Every GPU, measured now, with its ledger."""
        return await orchestrator.states()

    @routes.get("/gpu/states/{uuid}/processes")
    async def processes(uuid: str) -> GpuProcesses:
        """Who uses one GPU, measured now."""
        return await orchestrator.processes(uuid)

    @routes.get("/memory")
    async def memory() -> MemoryState:
        """RAM and swap, measured now, with the ledger of the RAM."""
        return await orchestrator.memory()

    @routes.get("/memory/history")
    async def memory_history(seconds: Seconds = 900) -> MemoryHistory:
        """RAM as it was: every second of the last 15 minutes, every 30 s of a longer time."""
        return orchestrator.memory_history(seconds)

    @routes.get("/gpu/history")
    async def gpu_history(seconds: Seconds = 900, uuid: Identifier | None = None) -> GpuHistory:
        """VRAM as it was, used or promised, of each GPU and part of one."""
        return orchestrator.gpu_history(seconds, uuid)
