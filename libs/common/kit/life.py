"""One service's life: built, its port bound, connected, its streams declared, its doors open; and all of it back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from socket import socket

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.transport import Transport
from libs.common.clock import Clock
from libs.common.contracts.streams import STREAMS
from libs.common.errors import Disconnected, MeshError, Unavailable, WrongSetting
from libs.common.kit import identity
from libs.common.kit.http import http_door, readiness
from libs.common.kit.http_server import bind, serving
from libs.common.kit.loops import Periodic
from libs.common.kit.metrics import Metrics
from libs.common.kit.observer import KitObserver
from libs.common.kit.process import Process
from libs.common.kit.service import Build, Check, Loop, Platform, Service
from libs.common.kit.tracing import Tracing, make_tracing

log = structlog.get_logger()

AGAIN_SECONDS = 0.25
READY_SECONDS = 0.02


@dataclass(kw_only=True)
class Life:
    """`up` is set while both doors are open. `leads`: the first service of the process, whose metrics tell of it."""

    name: str
    build: Build
    process: Process
    leads: bool
    up: asyncio.Event = field(default_factory=asyncio.Event)
    checks: dict[str, Check] = field(default_factory=dict)

    async def live(self) -> None:
        """Until the process is to stop. Raises nothing: what goes wrong is told to the process."""
        with structlog.contextvars.bound_contextvars(service=self.name):
            try:
                await self._live()
            except Exception as error:  # noqa: BLE001  # told, logged and ends the process
                self.process.fail(self.name, "stop" if self.up.is_set() else "start", error)

    async def ready(self) -> None:
        """Return once the service is up and all its checks hold."""
        await self.up.wait()
        pause = READY_SECONDS
        while not (await readiness(self.checks)).ready:
            await self.process.clock.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _live(self) -> None:
        process, settings = self.process, self.process.settings
        metrics = Metrics(self.name, process.clock, version=process.version, python=process.python)
        if self.leads:
            metrics.add_process()
        tracing = make_tracing(self.name, on=settings.tracing, endpoint=settings.otel_exporter_otlp_endpoint)
        async with _closing(tracing), process.connect(self.name) as transport:
            bus = Bus(transport, name=self.name, observer=KitObserver(metrics, tracing), clock=process.clock)
            metrics.watch_connection(bus)
            self.checks = {"nats": partial(_nats_problem, bus, process.clock), "start": self._not_up}
            with ExitStack() as held:
                made = self._make(self._platform(bus, metrics), held)
                await process.meeting.arrive()
                if made is None or process.failure is not None:
                    process.stop.set()
                    return
                service, listener = made
                async with AsyncExitStack() as http, self._guarded({"connection to NATS": transport.failed}):
                    await http.enter_async_context(self._http(service, bus, metrics, tracing, listener))
                    await transport.connected()
                    await self._declare(transport, service)
                    async with service.lifespan():
                        await service.subscriptions()
                        log.info("service_up", port=listener.getsockname()[1])
                        await self._open(service, bus, metrics, http)

    def _make(self, platform: Platform, held: ExitStack) -> tuple[Service, socket] | None:
        """The service and its bound port; None when a setting is wrong, which is told once all have spoken."""
        try:
            service = self.build(platform)
            listener = bind(self.process.settings.http_host, service.port, variable=f"{self.name.upper()}_PORT")
        except WrongSetting as error:
            self.process.remember(error)
            return None
        return service, held.enter_context(closing(listener))

    def _http(
        self, service: Service, bus: Bus, metrics: Metrics, tracing: Tracing, listener: socket
    ) -> AbstractAsyncContextManager[None]:
        """The HTTP door, which tells how the service is as soon as it is there, and lets in more once it is `up`."""
        process, settings = self.process, self.process.settings
        door = http_door(
            service.router,
            version=process.version_of(self.name),
            checks=self.checks,
            metrics=metrics,
            clock=process.clock,
            token=settings.api_token.get_secret_value() if settings.api_token else None,
            body_limit_mb=settings.http_body_limit_mb,
            tracing=tracing,
            starting=partial(self._starting, bus),
        )
        return serving(door.app, listener, drain_seconds=settings.shutdown_seconds, closing=door.streams.end)

    def _starting(self, bus: Bus) -> MeshError | None:
        if self.up.is_set():
            return None
        problem = _problem_since(bus, self.process.clock)
        return Disconnected(problem) if problem else Unavailable(f"{self.name} is starting")

    async def _not_up(self) -> str | None:
        return "it is starting"

    async def _open(self, service: Service, bus: Bus, metrics: Metrics, http: AsyncExitStack) -> None:
        """Loops, and all of HTTP, until the process is to stop; then both doors close side by side, and the loops
        end."""
        process = self.process
        async with self._guarded(_named(service.loops, metrics)), asyncio.TaskGroup() as leaving:
            del self.checks["start"]
            self.checks.update(service.checks)
            self.up.set()
            await process.stop.wait()
            leaving.create_task(bus.drain(process.settings.shutdown_seconds))
            await http.aclose()

    async def _declare(self, transport: Transport, service: Service) -> None:
        # Every service makes every stream: strangers' work is kept even when its own service is away. But only one says
        # how large each is: otherwise the settings of whoever starts last would hold.
        for stream in dict.fromkeys([*STREAMS, *service.uses, *service.streams]):
            await self._patiently(partial(transport.ensure_stream, stream, change=stream in service.streams))
        for bucket in service.buckets:
            await self._patiently(partial(transport.ensure_bucket, bucket))

    async def _patiently(self, action: Callable[[], Awaitable[None]]) -> None:
        """At the start NATS may not be there yet: wait for it, and say so once."""
        told = False
        while True:
            try:
                return await action()
            except Unavailable as reason:
                if not told:
                    log.warning("start_waits", reason=reason.message)
                told = True
                await self.process.clock.sleep(AGAIN_SECONDS)

    @asynccontextmanager
    async def _guarded(self, parts: Mapping[str, Loop]) -> AsyncIterator[None]:
        """Run parts that must not end by themselves; if one does, the whole process does."""
        tasks = [
            asyncio.create_task(self._guard(part, loop), name=f"{self.name}: {part}") for part, loop in parts.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, part: str, loop: Loop) -> None:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001  # told, logged and ends the process
            self.process.fail(self.name, part, error)
        else:
            self.process.fail(self.name, part, "it returned, but it must run for ever")

    def _platform(self, bus: Bus, metrics: Metrics) -> Platform:
        process = self.process
        return Platform(
            bus=bus,
            clock=process.clock,
            metrics=metrics.registry,
            node_id=process.node_id,
            boot_id=process.boot_id,
            data_dir=process.data_dir,
            machine_boot=identity.machine_boot(),
            archive=process.archive,
        )


def _named(loops: Sequence[Loop], metrics: Metrics) -> dict[str, Loop]:
    named: dict[str, Loop] = {}
    for loop in loops:
        name = str(getattr(loop, "name", None) or getattr(loop, "__qualname__", "loop"))
        part = f"loop {name}"
        while part in named:
            part += "'"
        named[part] = partial(loop, metrics) if isinstance(loop, Periodic) else loop
    return named


async def _nats_problem(bus: Bus, clock: Clock) -> str | None:
    return _problem_since(bus, clock)


def _problem_since(bus: Bus, clock: Clock) -> str | None:
    problem, away = bus.problem(), bus.away_seconds
    if problem is None or away is None:
        return problem
    return f"{problem} (since {clock.now() - timedelta(seconds=away):%Y-%m-%dT%H:%M:%SZ})"


@asynccontextmanager
async def _closing(tracing: Tracing) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.to_thread(tracing.close)
