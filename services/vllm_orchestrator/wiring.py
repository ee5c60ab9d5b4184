"""The only place where the orchestrator's parts meet."""

from functools import partial

from prometheus_client import Gauge

from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from services.vllm_orchestrator.http_api import routes
from services.vllm_orchestrator.nats_api import open_doors
from services.vllm_orchestrator.settings import Settings
from services.vllm_orchestrator.use_cases import VllmOrchestrator


def build(platform: Platform, settings: Settings | None = None) -> Service:
    """Raises `WrongSetting`."""
    chosen = settings or load(Settings)
    orchestrator = VllmOrchestrator(platform.clock)
    known = Gauge("mesh_orchestrator_engines_ready", "Engines that would take a request.", registry=platform.metrics)
    known.set_function(orchestrator.ready)
    return Service(
        port=chosen.port,
        subscriptions=partial(open_doors, platform.bus, orchestrator),
        router=routes(orchestrator),
    )
