"""Registries on a bus, a clock and an archive of the test's own."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.migrations import read_schema
from libs.common.archive.writer import ArchiveWriter
from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import NodeState
from libs.common.contracts.streams import NODE_REGISTRY
from services.node_registry import tables
from services.node_registry.administration import Administration
from services.node_registry.archiving import Archiving
from services.node_registry.election import Election
from services.node_registry.model import Rules
from services.node_registry.nats_api import open_door
from services.node_registry.publishing import Publishing
from services.node_registry.use_cases import NodeRegistry
from tests.recording import RecordingObserver

SCHEMA = read_schema(tables.OWNER, tables.TABLES, Path(tables.__file__).parent / "migrations")
LEASE_SECONDS = 3
GRACE_SECONDS = 5.0


@dataclass
class Counts:
    heard_kinds: Counter[str] = field(default_factory=Counter)
    now: dict[NodeState, int] = field(default_factory=dict)
    mass: bool = False
    events_lost: int = 0
    refused_rows: Counter[str] = field(default_factory=Counter)
    is_elected: bool = False

    def heard(self, kind: str) -> None:
        self.heard_kinds[kind] += 1

    def changed(self, state: NodeState) -> None:
        self.heard_kinds[f"to {state}"] += 1

    def seen(self, nodes: Mapping[NodeState, int], *, mass_silence: bool) -> None:
        self.now, self.mass = dict(nodes), mass_silence

    def lost(self) -> None:
        self.events_lost += 1

    def put_aside(self, table: str) -> None:
        self.refused_rows[table] += 1

    def elected(self, elected: bool) -> None:
        self.is_elected = elected


@dataclass
class Parts:
    """One registry. `step` is what its loops do again and again."""

    registry: NodeRegistry
    administration: Administration
    publishing: Publishing
    election: Election
    archiving: Archiving
    writer: ArchiveWriter
    bus: Bus
    counts: Counts

    async def step(self) -> None:
        await self.registry.watch()
        await self.election.round()
        await self.publishing.upkeep()
        await self.archiving.look()


@asynccontextmanager
async def one_registry(
    server: MemoryServer,
    clock: ManualClock,
    *,
    archive: MemoryArchive | None = None,
    rules: Rules | None = None,
    name: str = "one",
    most_rows: int = 20_000,
) -> AsyncIterator[Parts]:
    kept, counts = archive or MemoryArchive(), Counts()
    async with server.connect("registry") as transport:
        bus = Bus(transport, name="node_registry", observer=RecordingObserver(), clock=clock)
        writer = ArchiveWriter(kept, SCHEMA, clock, most_rows=most_rows, refused=counts.put_aside)
        archiving = Archiving(
            archive=kept,
            writer=writer,
            clock=clock,
            observer=counts,
            most_rows=most_rows,
            grace_seconds=GRACE_SECONDS,
        )
        election = Election(bus=bus, clock=clock, observer=counts, holder=name, lease_seconds=LEASE_SECONDS)
        publishing = Publishing(
            bus=bus, clock=clock, election=election, archiving=archiving, grace_seconds=GRACE_SECONDS
        )
        election.office = publishing
        registry = NodeRegistry(
            bus=bus,
            clock=clock,
            rules=rules or Rules(),
            observer=counts,
            chronicle=publishing,
            discover_seconds=5.0,
        )
        administration = Administration(registry=registry, bus=bus, clock=clock, registration_seconds=300.0)
        await transport.ensure_bucket(NODE_REGISTRY)
        await open_door(registry, administration, publishing, bus)
        loops = [asyncio.create_task(loop()) for loop in (publishing.tell, administration.follow, writer.run)]
        parts = Parts(registry, administration, publishing, election, archiving, writer, bus, counts)
        await parts.step()
        try:
            yield parts
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


async def until(truth: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await truth():
            await asyncio.sleep(0)


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(100):
        await asyncio.sleep(0)
