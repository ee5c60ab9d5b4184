"""The only place where the detector's parts meet."""

from functools import partial
from pathlib import Path

from libs.common.contracts.node_registry import Inventory, TierVerdict
from libs.common.kit import identity
from libs.common.kit.loops import every
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import PlatformSettings, load
from libs.hardware.inspector import Inspector
from libs.hardware.tiers import classify
from services.resource_detector import http_api, nats_api
from services.resource_detector.compare import COMMAND, compare
from services.resource_detector.model import Identity
from services.resource_detector.observer_prometheus import PrometheusObserver
from services.resource_detector.probes_host import HostProbes
from services.resource_detector.settings import Settings
from services.resource_detector.table import BROKEN, rows
from services.resource_detector.use_cases import ResourceDetector

__all__ = ["BROKEN", "COMMAND", "build", "compare", "look_once", "rows"]


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    probes = HostProbes(_inspector(platform.data_dir, settings))
    this_machine = Identity(
        node_id=platform.node_id,
        boot_id=platform.boot_id,
        heartbeat_seconds=settings.heartbeat_seconds,
        labels=settings.labels,
        tier=settings.tier,
    )
    detector = ResourceDetector(
        identity=this_machine,
        probes=probes,
        bus=platform.bus,
        clock=platform.clock,
        observer=PrometheusObserver(platform.metrics),
    )
    return Service(
        port=settings.port,
        lifespan=probes.open,
        subscriptions=partial(nats_api.open_door, detector, platform.bus),
        loops=[
            every(settings.announce_seconds, detector.announce, platform.clock, name="announce"),
            every(settings.heartbeat_seconds, detector.beat, platform.clock, name="heartbeat"),
        ],
        router=http_api.router(detector),
    )


async def look_once() -> tuple[Inventory, TierVerdict]:
    """What this machine has and its tier, without a mesh."""
    settings = load(Settings)
    inspector = _inspector(identity.data_directory(load(PlatformSettings)), settings)
    try:
        inventory = await inspector.inventory()
        if inventory.problems:
            inventory = await inspector.inventory(look_again=True)
    finally:
        await inspector.close()
    return inventory, classify(inventory, override=settings.tier)


def _inspector(data_dir: Path, settings: Settings) -> Inspector:
    return Inspector(
        folder=data_dir / "resource_detector",
        disks=[data_dir, *settings.disks],
        seconds=settings.source_seconds,
    )
