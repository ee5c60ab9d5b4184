"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from libs.common.contracts.engine_hosting import MOST_DRAIN_SECONDS
from libs.common.contracts.vllm_instances import (
    ComposeFile,
    DeployRequest,
    GatewayView,
    InstanceEvents,
    InstanceLog,
    InstancesFound,
    InstanceView,
    KeptStarts,
)
from libs.common.contracts.vllm_orchestrator import (
    FittingModels,
    PlacedEngines,
    PlanAnswer,
    PlanRequest,
    ServedModels,
    Strategies,
)
from services.vllm_orchestrator.deployments import Deployments
from services.vllm_orchestrator.learning import Learning
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.registering import Registering
from services.vllm_orchestrator.use_cases import VllmOrchestrator

ModelName = Annotated[str | None, Query(min_length=1, max_length=256, description="only engines that serve this")]
Length = Annotated[int, Query(ge=1, le=2**31, description="tokens; a model that knows fewer is planned with those")]
Concurrency = Annotated[float, Query(ge=1, le=1_000_000, description="requests of that length at once")]


Name = Annotated[str, Path(min_length=1, max_length=48, description="an instance's name")]
Number = Annotated[int | None, Query(ge=0, le=2**31, description="of which of its replicas; left out: its first")]
Drain = Annotated[
    float | None,
    Query(ge=0, le=MOST_DRAIN_SECONDS, description="requests in hand may take so long; left out: as it was deployed"),
]
Rank = Annotated[int, Query(ge=0, le=1000, description="of which of the replica's processes")]
Characters = Annotated[int, Query(ge=1, le=200_000, description="so many from the end")]


def routes(
    orchestrator: VllmOrchestrator,
    planning: Planning,
    deployments: Deployments,
    learning: Learning,
    registering: Registering | None,
) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    router.include_router(_served(orchestrator))
    router.include_router(_planned(planning, learning))
    router.include_router(_deployed(deployments))
    router.include_router(_registered(registering))
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


def _planned(planning: Planning, learning: Learning) -> APIRouter:
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

    @router.get("/starts", summary="What engines' logs told of their starts; it corrects plans.")
    async def starts() -> KeptStarts:
        return await learning.known()

    return router


def _deployed(deployments: Deployments) -> APIRouter:
    router = APIRouter(prefix="/vllm", tags=["instances"])

    @router.post("/deploy", status_code=202, summary="Serve a model; the same again changes nothing.")
    async def deploy(request: DeployRequest) -> InstanceView:
        return await deployments.deploy(request)

    @router.get("/instances", summary="Every instance, and how it is.")
    async def instances() -> InstancesFound:
        return await deployments.all()

    @router.get("/instances/{name}", summary="One instance.")
    async def instance(name: Name) -> InstanceView:
        return await deployments.one(name)

    @router.get("/instances/{name}/events", summary="What happened to it, the latest last.")
    async def events(name: Name) -> InstanceEvents:
        return await deployments.events(name)

    @router.get("/instances/{name}/logs", summary="The end of what its engine wrote.")
    async def logs(name: Name, replica: Number = None, rank: Rank = 0, characters: Characters = 20_000) -> InstanceLog:
        return await deployments.log(name, replica, rank, characters)

    @router.get("/instances/{name}/compose", summary="The same engine for Docker Compose, on its node.")
    async def compose(name: Name, replica: Number = None, rank: Rank = 0) -> ComposeFile:
        return await deployments.compose(name, replica, rank)

    @router.post("/instances/{name}/restart", status_code=202, summary="End it and start it anew, failed ones too.")
    async def restart(name: Name, drain_seconds: Drain = None) -> InstanceView:
        return await deployments.restart(name, drain_seconds)

    @router.delete(
        "/instances/{name}",
        status_code=202,
        summary="End its requests, itself and its claims, and forget it.",
    )
    async def delete(name: Name, drain_seconds: Drain = None) -> InstanceView:
        return await deployments.delete(name, drain_seconds)

    return router


def _registered(registering: Registering | None) -> APIRouter:
    router = APIRouter(prefix="/vllm", tags=["gateway"])

    @router.get("/gateway", summary="What a TensorZero gateway was told of the instances.")
    async def gateway() -> GatewayView:
        return GatewayView(configured=False) if registering is None else await registering.view()

    return router
