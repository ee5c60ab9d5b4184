"""The only place where the GPU orchestrator's parts meet."""

from libs.common.kit.loops import every
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from libs.hardware.inspector import Inspector
from services.gpu_orchestrator import http_api
from services.gpu_orchestrator.meters_host import HostMeters
from services.gpu_orchestrator.observer_prometheus import PrometheusObserver
from services.gpu_orchestrator.settings import Settings
from services.gpu_orchestrator.use_cases import GpuOrchestrator


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    meters = HostMeters(Inspector(folder=platform.data_dir / "gpu_orchestrator", seconds=settings.source_seconds))
    orchestrator = GpuOrchestrator(
        node_id=platform.node_id,
        boot_id=platform.boot_id,
        meters=meters,
        bus=platform.bus,
        clock=platform.clock,
        observer=PrometheusObserver(platform.metrics),
    )
    return Service(
        port=settings.port,
        lifespan=meters.open,
        subscriptions=_hears_nothing,
        loops=[every(settings.states_seconds, orchestrator.tell, platform.clock, name="states")],
        router=http_api.router(orchestrator),
    )


async def _hears_nothing() -> None:
    """Reservations, when they come, will be asked for over NATS; measuring is asked for over HTTP."""
    return
