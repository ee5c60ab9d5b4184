"""The only place where the registry's parts meet."""

from functools import partial

from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.kit.loops import every
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from services.node_registry import http_api, nats_api
from services.node_registry.administration import Administration
from services.node_registry.model import Rules
from services.node_registry.observer_prometheus import PrometheusObserver
from services.node_registry.settings import Settings
from services.node_registry.use_cases import NodeRegistry

LATE_SECONDS = 1.0
"""Who looks so much later than it wanted to was stopped or starved, and has not listened either."""


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    rules = Rules(
        suspect_beats=settings.suspect_beats,
        offline_beats=settings.offline_beats,
        mass_nodes=settings.mass_nodes,
        attention_seconds=settings.watch_seconds + LATE_SECONDS,
    )
    registry = NodeRegistry(
        bus=platform.bus,
        clock=platform.clock,
        rules=rules,
        observer=PrometheusObserver(platform.metrics),
        discover_seconds=settings.discover_seconds,
    )
    administration = Administration(
        registry=registry,
        bus=platform.bus,
        clock=platform.clock,
        registration_seconds=settings.registration_seconds,
    )
    return Service(
        port=settings.port,
        buckets=[NODE_REGISTRY],
        subscriptions=partial(nats_api.open_door, registry, administration, platform.bus),
        loops=[
            every(settings.watch_seconds, registry.watch, platform.clock, name="watch"),
            registry.tell,
            administration.follow,
        ],
        router=http_api.router(registry, administration),
    )
