"""A GPU orchestrator with made-up hardware, a real journal and a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.gpu_orchestrator import GpuProcess, GpuState, GpuStates
from libs.common.contracts.node_registry import Memory, Problem
from libs.common.contracts.streams import GPU_RESERVATIONS
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.bookkeeping import Bookkeeping
from services.gpu_orchestrator.copying import Copying
from services.gpu_orchestrator.measuring import Measuring
from services.gpu_orchestrator.meters import Family, Graphics, Root
from services.gpu_orchestrator.model import Entry, Rules
from services.gpu_orchestrator.nats_api import open_doors
from services.gpu_orchestrator.pressure import Limits
from services.gpu_orchestrator.store_sqlite import SqliteJournal
from services.gpu_orchestrator.telling import Telling
from services.gpu_orchestrator.trend import Window
from services.gpu_orchestrator.use_cases import GpuOrchestrator
from services.gpu_orchestrator.watching import Watching
from tests.nodes import gpu
from tests.recording import RecordingObserver

FREE_MB = 24564 - 464
"""On an idle card, without margin."""


def idle(number: int, *processes: GpuProcess) -> GpuState:
    used = sum(each.used_mb or 0 for each in processes)
    return GpuState(gpu=gpu(number, vram_used_mb=used, vram_free_mb=FREE_MB - used), processes=processes)


@dataclass
class MadeUpMeters:
    problems: tuple[Problem, ...] = ()
    states: tuple[GpuState, ...] = (idle(0), idle(1))
    measured: int = 0
    looked: int = 0
    ram: Memory = field(default_factory=lambda: Memory(total_mb=65536, available_mb=60000))
    sees: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: a look is answered."""
    shows_begin: bool = False
    """A look shows what was in use when it was begun, not when it is answered."""

    def __post_init__(self) -> None:
        self.sees.set()

    async def gpus(self) -> Graphics:
        self.measured += 1
        return Graphics(states=self.states, problems=self.problems)

    def used_mb(self) -> Awaitable[Mapping[str, int | None]]:
        self.looked += 1
        return self._used_mb(self.states)

    async def _used_mb(self, begun: tuple[GpuState, ...]) -> Mapping[str, int | None]:
        await self.sees.wait()
        states = begun if self.shows_begin else self.states
        return {state.gpu.uuid: state.gpu.vram_used_mb for state in states}

    stalled: float | None = None

    def stalled_ratio(self) -> float | None:
        return self.stalled

    def memory_now(self) -> Memory:
        return self.ram

    async def memory(self) -> tuple[Memory, tuple[Problem, ...]]:
        return self.ram, ()


@dataclass
class MadeUpProcesses:
    """`running`: when each process started. `obstacles`: why one can hold no reservation."""

    running: dict[int, int] = field(default_factory=lambda: {42: 1})
    obstacles: dict[int, str] = field(default_factory=dict)
    ram_mb: dict[int, int] = field(default_factory=dict)

    async def start_of(self, pid: int) -> int | None:
        return self.running.get(pid)

    async def obstacle(self, pid: int) -> str | None:
        return self.obstacles.get(pid)

    async def has_container(self, container_id: str) -> bool:
        return False

    async def residents(self) -> Mapping[int, int]:
        return self.ram_mb

    async def commands(self, pids: Collection[int]) -> Mapping[int, str]:
        return {pid: f"program {pid}" for pid in pids}

    async def families(self, roots: Collection[Root], pids: Collection[int]) -> Family:
        lives = [root for root in roots if self.running.get(root.pid or 0) == root.pid_start]
        alive = {name: root in lives for root in roots for name in root.reservation_ids}
        owners = {root.pid: root.reservation_ids for root in lives if root.pid}
        return Family(owners=owners, alive=alive, ram_mb={}, commands={})


@dataclass
class Eye:
    seen: list[tuple[Sequence[GpuState], Memory]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def measured(self, gpus: Sequence[GpuState], memory: Memory) -> None:
        self.seen.append((gpus, memory))

    def reckoned(self, ledger: Mapping[str, Entry], reservations: Mapping[str, int]) -> None:
        """Nobody asks for it here."""

    def pressed(self, device: str, level: str, seconds: float) -> None:
        """Nobody asks for it here."""

    def asked(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def happened(self, kind: str) -> None:
        self.events.append(kind)


@dataclass
class World:
    orchestrator: GpuOrchestrator
    watching: Watching
    copying: Copying
    telling: Telling
    meters: MadeUpMeters
    processes: MadeUpProcesses
    eye: Eye
    bus: Bus
    clock: ManualClock
    told: "asyncio.Queue[GpuStates]" = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def made_world(
    folder: Path,
    *,
    node_id: str = "n",
    machine_boot: str = "b",
    server: MemoryServer | None = None,
    clock: ManualClock | None = None,
    still_seconds: float = float("inf"),
) -> AsyncIterator[World]:
    clock = clock or ManualClock()
    meters, processes, eye = MadeUpMeters(), MadeUpProcesses(), Eye()
    async with (server or MemoryServer(clock=clock)).connect("gpu") as transport:
        bus = Bus(transport, name="gpu_orchestrator", observer=RecordingObserver(), clock=clock)
        bookkeeping = Bookkeeping(
            book=Book(Rules(margin_mb=0, ram_margin_mb=0)),
            journal=SqliteJournal(folder / f"{node_id}.db"),
            clock=clock,
            machine_boot=machine_boot,
        )
        measuring = Measuring(
            meters=meters,
            processes=processes,
            bookkeeping=bookkeeping,
            clock=clock,
            observer=eye,
            measure_seconds=60,
            still_seconds=still_seconds,
        )
        watching = Watching(
            node_id=node_id,
            measuring=measuring,
            meters=meters,
            processes=processes,
            bus=bus,
            clock=clock,
            observer=eye,
            window=Window(),
            limits=Limits(),
        )
        orchestrator = GpuOrchestrator(
            node_id=node_id,
            boot_id="b",
            watching=watching,
            meters=meters,
            processes=processes,
            bookkeeping=bookkeeping,
            measuring=measuring,
            bus=bus,
            clock=clock,
            observer=eye,
            timeout_seconds=300,
        )
        copying = Copying(
            node_id=node_id,
            bus=bus,
            clock=clock,
            tell=partial(orchestrator.reservations, only_open=True),
            version=orchestrator.version,
        )
        telling = Telling(
            bus=bus,
            clock=clock,
            measure=orchestrator.observed_states,
            known=orchestrator.known_states,
            standing=orchestrator.standing,
            least_seconds=1.0,
        )
        await transport.ensure_bucket(GPU_RESERVATIONS)
        async with orchestrator.open():
            await open_doors(bus, orchestrator, node_id)
            yield World(orchestrator, watching, copying, telling, meters, processes, eye, bus, clock)
