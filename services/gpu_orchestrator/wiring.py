"""The only place where the GPU orchestrator's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import structlog

from libs.common.contracts.gpu_orchestrator import GpuStates, MemoryState
from libs.common.contracts.streams import GPU_RESERVATIONS
from libs.common.errors import Unavailable
from libs.common.kit.loops import every
from libs.common.kit.service import Platform, Service, degraded_while
from libs.common.kit.settings import PlatformSettings, load
from libs.hardware.inspector import Inspector
from services.gpu_orchestrator import http_api
from services.gpu_orchestrator.alone_posix import PosixAlone
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.bookkeeping import Bookkeeping
from services.gpu_orchestrator.copying import Copying
from services.gpu_orchestrator.measuring import Measuring
from services.gpu_orchestrator.meters_host import HostMeters
from services.gpu_orchestrator.meters_proc import ProcProcesses
from services.gpu_orchestrator.model import Rules
from services.gpu_orchestrator.nats_api import open_doors
from services.gpu_orchestrator.observer_prometheus import PrometheusObserver
from services.gpu_orchestrator.pressure import Limits
from services.gpu_orchestrator.settings import Settings
from services.gpu_orchestrator.store_sqlite import SqliteJournal
from services.gpu_orchestrator.table import COLUMNS, HEAD, NAME, Seen, seen, widths
from services.gpu_orchestrator.telling import Telling
from services.gpu_orchestrator.trend import Window
from services.gpu_orchestrator.use_cases import GpuOrchestrator
from services.gpu_orchestrator.watching import Watching

__all__ = ["COLUMNS", "HEAD", "NAME", "Seen", "build", "look", "widths"]

LOOK_SECONDS = 10.0
CHANGE_SECONDS = 0.25
COPY_SECONDS = 0.5
STILL_SECONDS = 30.0
log = structlog.get_logger()


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    folder = platform.data_dir / "gpu_orchestrator"
    meters = HostMeters(Inspector(folder=folder, seconds=settings.gpu_orchestrator_source_seconds))
    alone = PosixAlone(settings.gpu_orchestrator_lock)
    processes, journal = ProcProcesses(), SqliteJournal(folder / "ledger.db")
    parts = _Parts(meters, processes, journal)
    orchestrator, watching = _orchestrator(platform, settings, parts)

    copying = Copying(
        node_id=platform.node_id,
        bus=platform.bus,
        clock=platform.clock,
        tell=partial(orchestrator.reservations, only_open=True),
        version=orchestrator.version,
    )

    telling = Telling(
        bus=platform.bus,
        clock=platform.clock,
        measure=orchestrator.observed_states,
        known=orchestrator.known_states,
        standing=orchestrator.standing,
        least_seconds=settings.gpu_orchestrator_changes_seconds,
    )

    @asynccontextmanager
    async def alive() -> AsyncIterator[None]:
        try:
            if (others := alone.problem()) is not None:
                log.warning("machine_is_shared", reason=others)
            async with meters.open(), orchestrator.open():
                yield
        finally:
            alone.close()
            processes.close()

    async def journal_writable() -> str | None:
        return journal.problem()

    async def measured() -> str | None:
        return orchestrator.problem()

    return Service(
        port=settings.port,
        buckets=[GPU_RESERVATIONS],
        lifespan=alive,
        subscriptions=partial(open_doors, platform.bus, orchestrator, platform.node_id),
        loops=[
            every(settings.gpu_watch_seconds, watching.watch, platform.clock, name="watch"),
            every(settings.gpu_orchestrator_states_seconds, telling.tell, platform.clock, name="states"),
            every(CHANGE_SECONDS, telling.tell_change, platform.clock, name="changes"),
            every(COPY_SECONDS, copying.copy, platform.clock, name="copy"),
        ],
        router=http_api.router(orchestrator),
        checks={"journal": journal_writable, "measured": measured, "machine": degraded_while(alone.problem)},
    )


def look() -> Seen:
    """The ledger of the orchestrator that runs on this machine. Raises `Unavailable`, `WrongSetting`."""
    platform, settings = load(PlatformSettings), load(Settings)
    token = platform.api_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    url = f"http://{platform.http_host}:{settings.port}/api/v1"
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=LOOK_SECONDS) as door:
            states = GpuStates.model_validate_json(door.get("/gpu/states").raise_for_status().content)
            memory = MemoryState.model_validate_json(door.get("/memory").raise_for_status().content)
    except httpx.HTTPError as error:
        raise Unavailable(f"The GPU orchestrator at {url} does not answer: {error}") from error
    return seen(states, memory)


@dataclass(frozen=True, slots=True)
class _Parts:
    meters: HostMeters
    processes: ProcProcesses
    journal: SqliteJournal


def _orchestrator(platform: Platform, settings: Settings, parts: _Parts) -> tuple[GpuOrchestrator, Watching]:
    observer = PrometheusObserver(platform.metrics)
    bookkeeping = Bookkeeping(
        book=Book(_rules(settings)), journal=parts.journal, clock=platform.clock, machine_boot=platform.machine_boot
    )
    measuring = Measuring(
        meters=parts.meters,
        processes=parts.processes,
        bookkeeping=bookkeeping,
        clock=platform.clock,
        observer=observer,
        measure_seconds=settings.gpu_measure_seconds,
        still_seconds=max(STILL_SECONDS, 5 * settings.gpu_watch_seconds),
    )
    watching = Watching(
        node_id=platform.node_id,
        measuring=measuring,
        meters=parts.meters,
        processes=parts.processes,
        bus=platform.bus,
        clock=platform.clock,
        observer=observer,
        window=Window(seconds=settings.gpu_pressure_window_seconds),
        limits=_limits(settings),
    )
    orchestrator = GpuOrchestrator(
        node_id=platform.node_id,
        boot_id=platform.boot_id,
        meters=parts.meters,
        processes=parts.processes,
        bookkeeping=bookkeeping,
        measuring=measuring,
        watching=watching,
        bus=platform.bus,
        clock=platform.clock,
        observer=observer,
        timeout_seconds=settings.gpu_reservation_timeout,
    )
    return orchestrator, watching


def _rules(settings: Settings) -> Rules:
    return Rules(
        foreign_hold_seconds=settings.gpu_foreign_hold_seconds,
        leak_grace_seconds=settings.gpu_leak_grace_seconds,
        healthy_seconds=settings.gpu_healthy_seconds,
        margin_mb=settings.gpu_margin_mb,
        ram_margin_mb=settings.gpu_ram_margin_mb,
    )


def _limits(settings: Settings) -> Limits:
    seconds, left = settings.gpu_pressure_elevated_seconds, settings.gpu_pressure_elevated_ratio
    return Limits(
        elevated_seconds=seconds,
        critical_seconds=seconds / 2,
        elevated_left=left,
        critical_left=left / 2,
        hold_seconds=settings.gpu_pressure_hold_seconds,
    )
