"""The only place where the registry's parts meet."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from libs.common.archive.migrations import read_schema
from libs.common.archive.writer import ArchiveWriter
from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.kit.loops import every
from libs.common.kit.service import Platform, Service, degraded_while
from libs.common.kit.settings import load
from services.node_registry import http_api, nats_api
from services.node_registry.administration import Administration
from services.node_registry.archiving import Archiving
from services.node_registry.election import Election
from services.node_registry.model import Rules
from services.node_registry.observer_prometheus import PrometheusObserver
from services.node_registry.publishing import Publishing
from services.node_registry.settings import Settings
from services.node_registry.tables import OWNER, TABLES
from services.node_registry.use_cases import NodeRegistry

LATE_SECONDS = 1.0
"""Who looks so much later than it wanted to was stopped or starved, and has not listened either."""


ROUNDS = 6
"""In one term of a lease it is looked at so often."""
UPKEEP_SECONDS = 1.0
LOOK_SECONDS = 5.0
DRAIN_SECONDS = 3.0
NOTICE_SECONDS = 2.0
"""What one registry noticed, all others have noticed so much later."""


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    bus, clock, observer = platform.bus, platform.clock, PrometheusObserver(platform.metrics)
    archive, grace_seconds = platform.archive(), settings.lease_seconds + NOTICE_SECONDS
    schema = read_schema(OWNER, TABLES, Path(__file__).parent / "migrations")
    writer = ArchiveWriter(archive, schema, clock, most_rows=settings.archive_rows, refused=observer.put_aside)
    archiving = Archiving(
        archive=archive,
        writer=writer,
        clock=clock,
        observer=observer,
        most_rows=settings.archive_rows,
        grace_seconds=grace_seconds,
    )
    holder = f"{platform.boot_id[:100]}-{secrets.token_hex(4)}"
    election = Election(bus=bus, clock=clock, observer=observer, holder=holder, lease_seconds=settings.lease_seconds)
    publishing = Publishing(bus=bus, clock=clock, election=election, archiving=archiving, grace_seconds=grace_seconds)
    election.office = publishing
    registry = NodeRegistry(
        bus=bus,
        clock=clock,
        rules=rules(settings),
        observer=observer,
        chronicle=publishing,
        discover_seconds=settings.discover_seconds,
    )
    administration = Administration(
        registry=registry, bus=bus, clock=clock, registration_seconds=settings.registration_seconds
    )
    return Service(
        port=settings.port,
        buckets=[NODE_REGISTRY],
        lifespan=partial(_leaving_in_order, election, writer),
        subscriptions=partial(nats_api.open_door, registry, administration, publishing, bus),
        loops=[
            every(settings.watch_seconds, registry.watch, clock, name="watch"),
            every(settings.lease_seconds / ROUNDS, election.round, clock, name="election"),
            every(UPKEEP_SECONDS, publishing.upkeep, clock, name="archive"),
            every(LOOK_SECONDS, archiving.look, clock, name="archive_look"),
            publishing.tell,
            writer.run,
            administration.follow,
        ],
        router=http_api.router(registry, administration, publishing),
        checks={
            "archive": degraded_while(archiving.problem, untried=archiving.untried),
            "nodes": degraded_while(lambda: registry.full),
        },
    )


def rules(settings: Settings) -> Rules:
    return Rules(
        suspect_beats=settings.suspect_beats,
        offline_beats=settings.offline_beats,
        mass_nodes=settings.mass_nodes,
        attention_seconds=settings.watch_seconds + LATE_SECONDS,
        nodes_most=settings.nodes_most,
        forget_seconds=settings.forget_seconds,
    )


@asynccontextmanager
async def _leaving_in_order(election: Election, writer: ArchiveWriter) -> AsyncIterator[None]:
    """What is known is archived, then the next registry may begin."""
    async with election.released(), writer.draining(DRAIN_SECONDS):
        yield
