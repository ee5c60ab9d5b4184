"""The only place where the orchestrator's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
from prometheus_client import Gauge

from libs.common.errors import WrongSetting
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from services.vllm_orchestrator.catalogue import catalogue_of, joined
from services.vllm_orchestrator.http_api import routes
from services.vllm_orchestrator.model import CatalogueEntry
from services.vllm_orchestrator.models_files import FileModels
from services.vllm_orchestrator.models_hub import HubModels
from services.vllm_orchestrator.nats_api import open_doors
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.settings import Settings
from services.vllm_orchestrator.use_cases import VllmOrchestrator

OURS = Path(__file__).with_name("catalogue.json")
USUAL_CACHE = Path("~/.cache/huggingface/hub")


def build(platform: Platform, settings: Settings | None = None) -> Service:
    """Raises `WrongSetting`."""
    chosen = settings or load(Settings)
    client = _hub_client(chosen)
    models = HubModels(
        client,
        FileModels(chosen.models_folder, (chosen.hub_cache or USUAL_CACHE).expanduser()),
        endpoint=chosen.hub,
        offline=chosen.hub_offline,
        kept=platform.data_dir / "vllm_orchestrator" / "models",
    )
    orchestrator = VllmOrchestrator(platform.clock)
    planning = Planning(platform.bus, platform.clock, models, _catalogue(chosen.catalogue))
    known = Gauge("mesh_orchestrator_engines_ready", "Engines that would take a request.", registry=platform.metrics)
    known.set_function(orchestrator.ready)

    @asynccontextmanager
    async def alive() -> AsyncIterator[None]:
        async with client:
            yield

    return Service(
        port=chosen.port,
        lifespan=alive,
        subscriptions=partial(open_doors, platform.bus, orchestrator, planning),
        router=routes(orchestrator, planning),
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
