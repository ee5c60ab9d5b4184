"""The only place where the orchestrator's parts meet."""

import random
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge

from libs.common.contracts.engine_hosting import MOST_LOG_CHARACTERS
from libs.common.contracts.streams import MIB, VLLM_LOG, VLLM_ORCHESTRATOR, VLLM_STARTS
from libs.common.contracts.vllm_instances import InstanceState
from libs.common.errors import WrongSetting
from libs.common.kit.service import Platform, Service, degraded_while
from libs.common.kit.settings import load
from services.vllm_orchestrator.catalogue import catalogue_of, joined
from services.vllm_orchestrator.deployments import Deployments
from services.vllm_orchestrator.engine_pages import EnginePages
from services.vllm_orchestrator.engine_pages_http import HttpEnginePages
from services.vllm_orchestrator.externals_http import HttpExternals
from services.vllm_orchestrator.gateway_folder import FolderOfGateway
from services.vllm_orchestrator.gateway_reload import GatewayReload
from services.vllm_orchestrator.gateway_tensorzero import TensorZeroJudge
from services.vllm_orchestrator.http_api import routes
from services.vllm_orchestrator.keeping import Keeping
from services.vllm_orchestrator.learning import Learning
from services.vllm_orchestrator.model import CatalogueEntry, StartedEngine
from services.vllm_orchestrator.models_files import FileModels
from services.vllm_orchestrator.models_hub import HubModels
from services.vllm_orchestrator.nats_api import open_doors
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.registering import Registering
from services.vllm_orchestrator.requests import Requests
from services.vllm_orchestrator.seeking import Seeking
from services.vllm_orchestrator.settings import Settings
from services.vllm_orchestrator.started import started_engines
from services.vllm_orchestrator.stranding import Stranding
from services.vllm_orchestrator.tending import Tending
from services.vllm_orchestrator.use_cases import VllmOrchestrator

OURS = Path(__file__).with_name("catalogue.json")
USUAL_CACHE = Path("~/.cache/huggingface/hub")


def build(platform: Platform, settings: Settings | None = None) -> Service:
    """Raises `WrongSetting`."""
    chosen = settings or load(Settings)
    client = _hub_client(chosen)
    models = _models(chosen, platform.data_dir, client)
    orchestrator = VllmOrchestrator(platform.clock)
    planning = Planning(
        platform.bus, platform.clock, models, _catalogue(chosen.catalogue), starts=lambda: learning.starts
    )
    holder = f"{platform.node_id[:64]}.{uuid4().hex[:12]}"
    keeping = Keeping(
        platform.bus,
        platform.clock,
        holder=holder,
        new_id=lambda: uuid4().hex,
        checkpoint_records=chosen.checkpoint_records,
    )
    seeking = Seeking(planning)
    asking = httpx.AsyncClient()
    tending = _tending(platform, chosen, seeking, keeping, HttpExternals(asking))
    deployments = Deployments(
        platform.bus, platform.clock, keeping, tending, seeking, drain_seconds=chosen.drain_seconds
    )
    requests = Requests(platform.bus, planning, deployments, keeping)
    _count(orchestrator, deployments, platform.metrics)

    learning = _learning(platform, models, planning, deployments, HttpEnginePages(asking))
    registering = _registering(chosen, platform, deployments, asking)

    @asynccontextmanager
    async def alive() -> AsyncIterator[None]:
        async with client, asking:
            yield

    return Service(
        port=chosen.port,
        streams=[replace(VLLM_LOG, max_bytes=chosen.log_max_mb * MIB)],
        buckets=[VLLM_ORCHESTRATOR, VLLM_STARTS],
        lifespan=alive,
        subscriptions=partial(open_doors, platform.bus, orchestrator, planning, requests, holder),
        loops=[
            partial(keeping.run, deployments.look_after),
            learning.hear,
            learning.run,
            *([registering.run] if registering else []),
        ],
        router=routes(orchestrator, planning, deployments, learning, registering),
        checks={"tensorzero": degraded_while(registering.problem)} if registering else {},
    )


def _learning(
    platform: Platform, models: HubModels, planning: Planning, deployments: Deployments, pages: EnginePages
) -> Learning:
    async def started() -> Iterable[StartedEngine]:
        instances = deployments.known()
        return started_engines(instances, await planning.registered()) if instances else ()

    async def read_log(engine: StartedEngine) -> str:
        name, number = engine.place
        return (await deployments.log(name, number, 0, MOST_LOG_CHARACTERS)).text

    async def read_metrics(engine: StartedEngine) -> str:
        url = deployments.url_of(*engine.place)
        return await pages.metrics(url) if url else ""

    learning = Learning(
        platform.bus, platform.clock, models, started=started, read_log=read_log, read_metrics=read_metrics
    )
    known = Gauge(
        "mesh_orchestrator_starts_known",
        "Starts that correct what is estimated.",
        registry=platform.metrics,
    )
    known.set_function(learning.count)
    return learning


def _registering(
    chosen: Settings, platform: Platform, deployments: Deployments, client: httpx.AsyncClient
) -> Registering | None:
    """Nobody, where there is no gateway to configure."""
    changes = Counter(
        "mesh_orchestrator_gateway_changes_total",
        "Changes of the gateway's configuration, by outcome.",
        ["outcome"],
        registry=platform.metrics,
    )
    models = Gauge(
        "mesh_orchestrator_gateway_models", "Models that the gateway was told of.", registry=platform.metrics
    )
    if chosen.tensorzero_folder is None:
        return None
    registering = Registering(
        FolderOfGateway(chosen.tensorzero_folder),
        TensorZeroJudge(),
        GatewayReload(
            client,
            platform.clock,
            how=chosen.tensorzero_reload,
            url=chosen.tensorzero_url,
            seconds=chosen.tensorzero_reload_seconds,
        ),
        platform.clock,
        instances=deployments.known,
        address=deployments.address,
        settle_seconds=chosen.tensorzero_settle_seconds,
        key=chosen.tensorzero_engine_key,
        count=lambda outcome: changes.labels(outcome=outcome).inc(),
    )
    models.set_function(registering.count_models)
    return registering


def _tending(
    platform: Platform, chosen: Settings, seeking: Seeking, keeping: Keeping, externals: HttpExternals
) -> Tending:
    failures = Counter(
        "mesh_orchestrator_failures_total",
        "Engines that failed and are tried again or given up, by kind.",
        ["kind"],
        registry=platform.metrics,
    )
    return Tending(
        platform.bus,
        platform.clock,
        seeking,
        Stranding(platform.bus, platform.clock, every_seconds=chosen.wait_seconds),
        externals,
        start_seconds=chosen.start_seconds,
        wait_seconds=chosen.wait_seconds,
        join_seconds=chosen.ray_join_seconds,
        chance=random.random,
        new_secret=partial(secrets.token_hex, 32),
        count_failure=lambda kind: failures.labels(kind=kind).inc(),
        wake=keeping.wake,
    )


def _count(orchestrator: VllmOrchestrator, deployments: Deployments, metrics: CollectorRegistry) -> None:
    known = Gauge("mesh_orchestrator_engines_ready", "Engines that would take a request.", registry=metrics)
    known.set_function(orchestrator.ready)
    counted = Gauge("mesh_orchestrator_instances", "Instances by their state.", ["state"], registry=metrics)
    replicas = Gauge("mesh_orchestrator_replicas", "Replicas of instances by state.", ["state"], registry=metrics)
    for state in InstanceState:
        counted.labels(state=state.value).set_function(partial(deployments.count, state))
        replicas.labels(state=state.value).set_function(partial(deployments.count_replicas, state))


def _models(chosen: Settings, data_dir: Path, client: httpx.AsyncClient) -> HubModels:
    return HubModels(
        client,
        FileModels(chosen.models_folder, (chosen.hub_cache or USUAL_CACHE).expanduser()),
        endpoint=chosen.hub,
        offline=chosen.hub_offline,
        kept=data_dir / "vllm_orchestrator" / "models",
    )


def _hub_client(chosen: Settings) -> httpx.AsyncClient:
    """Redirects lead to where a hub keeps its files; the token stays with the hub."""
    token = chosen.hub_token.get_secret_value() if chosen.hub_token else ""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(headers=headers, timeout=chosen.hub_seconds, follow_redirects=True)


def _catalogue(more: Path | None) -> tuple[CatalogueEntry, ...]:
    ours = catalogue_of(OURS.read_text(encoding="utf-8"), OURS.name)
    if more is None:
        return ours
    try:
        return joined(ours, catalogue_of(more.read_text(encoding="utf-8"), str(more)))
    except (OSError, UnicodeDecodeError) as error:
        raise WrongSetting(f"VLLM_CATALOGUE {more} cannot be read: {error}") from error
