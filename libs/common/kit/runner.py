"""Brings services to life: one in a process, or all of them. The services cannot tell which.

Whatever ends that must not end (a loop, a connection, a server) takes the whole process down, in order and with one
line that says what it was: there are no half-dead services.
"""

import asyncio
import gc
import os
import platform
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import structlog

from libs.common.bus.transport import Connect
from libs.common.clock import SystemClock
from libs.common.contracts.streams import MIB, WORK_DONE, WORK_IN, WORK_LOG, WORK_OBJECTS, WORK_OUT
from libs.common.errors import MeshError, WrongSetting
from libs.common.kit import identity, logs
from libs.common.kit.life import Life
from libs.common.kit.process import Meeting, Process, ServiceFailed
from libs.common.kit.service import Build
from libs.common.kit.settings import PlatformSettings, load

log = structlog.get_logger()

FAILED, WRONG_SETTING = 1, 2
OVERDUE_SECONDS = 5.0
COLLECTED_AFTER = (20_000, 20, 20)
"""New objects after which Python looks for cycles, instead of 700: we make few, and many objects that live on."""
DISTRIBUTION = "compute-mesh"

T = TypeVar("T")
Alongside = Callable[[str], Awaitable[None]]
"""Runs beside the services and is given the address of NATS. It may return; if it raises, the process ends."""


def main_of(builds: Mapping[str, Build], arguments: Sequence[str]) -> int:
    """Run the services that are named, or all. Returns the exit code."""
    unknown = [name for name in arguments if name not in builds]
    if unknown:
        sys.stderr.write(f"There is no service {unknown[0]!r}; there are {', '.join(builds)}.\n")
        return WRONG_SETTING
    return main({name: build for name, build in builds.items() if not arguments or name in arguments})


def main(builds: Mapping[str, Build]) -> int:
    """Run services until SIGINT or SIGTERM. Returns the exit code: 0, 1 something failed, 2 a setting is wrong."""
    try:
        settings = load(PlatformSettings)
        logs.configure(settings.log_format, settings.log_level)
        _look_for_garbage_less_often()
        run_on_uvloop(_until_signalled(builds, settings))
    except WrongSetting as error:
        sys.stderr.write(error.message + "\n")
        return WRONG_SETTING
    except ServiceFailed:
        return FAILED
    except MeshError as error:
        log.error("start_failed", reason=error.message, code=error.code)
        return FAILED
    return 0


def _look_for_garbage_less_often() -> None:
    gc.freeze()  # what was imported stays, and is not looked through again and again
    gc.set_threshold(*COLLECTED_AFTER)


def run_on_uvloop(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, faster."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextmanager
def stopping_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGINT and SIGTERM ask for an orderly end; a second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stop.is_set():
            log.warning("stopped_at_once", reason="a second interrupt")
            os._exit(128 + signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def run(
    builds: Mapping[str, Build],
    settings: PlatformSettings,
    *,
    stop: asyncio.Event,
    ready: asyncio.Event | None = None,
    alongside: Alongside | None = None,
    connect: Connect | None = None,
) -> None:
    """Run every service until `stop` is set, then shut down in order.

    `ready` is set once all services are up and all their checks hold. `connect` replaces NATS. Raises `WrongSetting`,
    and `ServiceFailed` when a part ended that must not end; `stop` is then set.
    """
    started = asyncio.get_running_loop().time()
    node_id, data_dir = identity.node_id(settings), identity.data_directory(settings)
    async with _nats(settings, data_dir, connect) as (address, connecting):
        process = Process(
            settings=settings,
            connect=connecting,
            clock=SystemClock(),
            node_id=node_id,
            boot_id=identity.new_boot_id(),
            data_dir=data_dir,
            version=version(DISTRIBUTION),
            python=platform.python_version(),
            stop=stop,
            meeting=Meeting(len(builds)),
        )
        names = list(builds)
        lives = [Life(name=name, build=builds[name], process=process, leads=name == names[0]) for name in names]
        try:
            async with _beside(
                process, partial(_tell_ready, lives, ready, started), alongside and partial(alongside, address)
            ):
                await _until_stopped(lives, process)
        finally:
            await process.close()
    if process.failure is not None:
        raise process.failure


async def _until_signalled(builds: Mapping[str, Build], settings: PlatformSettings) -> None:
    stop = asyncio.Event()
    with stopping_on_signals(stop):
        await run(builds, settings, stop=stop)


async def _until_stopped(lives: Sequence[Life], process: Process) -> None:
    tasks = {asyncio.create_task(life.live(), name=life.name): life for life in lives}
    try:
        await process.stop.wait()
        log.info("stopping", reason=process.failure.message if process.failure else "asked to")
        for task, life in tasks.items():
            if not life.up.is_set():
                task.cancel()
        _, overdue = await asyncio.wait(tasks, timeout=process.settings.shutdown_seconds + OVERDUE_SECONDS)
        for task in overdue:
            log.error("service_does_not_stop", service=tasks[task].name)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_ready(lives: Sequence[Life], ready: asyncio.Event | None, started: float) -> None:
    await asyncio.gather(*(life.ready() for life in lives))
    seconds = asyncio.get_running_loop().time() - started
    log.info("ready", services=[life.name for life in lives], seconds=round(seconds, 2))
    if ready is not None:
        ready.set()


@asynccontextmanager
async def _beside(process: Process, *works: Callable[[], Awaitable[None]] | None) -> AsyncIterator[None]:
    """Work that accompanies the services, and ends before them."""

    async def guard(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # told, logged and ends the process
            process.fail("process", "work beside the services", error)

    async def end_with_stop() -> None:
        await process.stop.wait()
        for task in tasks:
            task.cancel()

    tasks = [asyncio.create_task(guard(work)) for work in works if work is not None]
    ending = asyncio.create_task(end_with_stop())
    try:
        yield
    finally:
        for task in (ending, *tasks):
            task.cancel()
        await asyncio.gather(ending, *tasks, return_exceptions=True)


@asynccontextmanager
async def _nats(
    settings: PlatformSettings, data_dir: Path, connect: Connect | None
) -> AsyncIterator[tuple[str, Connect]]:
    """The address of NATS and how to connect to it. Without `NATS_URL` a server lives as long as we do."""
    if connect is not None:
        yield settings.nats_url or "", connect
    elif settings.nats_url is not None:
        yield settings.nats_url, _connecting(settings.nats_url, settings)
    else:
        from libs.common.bus.nats.server import ServerOptions, nats_server

        options = ServerOptions(
            directory=data_dir / "nats",
            host=settings.nats_host,
            port=settings.nats_port,
            token=settings.nats_token.get_secret_value() if settings.nats_token else None,
        )
        async with nats_server(options) as server:
            yield server.url, _connecting(server.url, settings)


def _connecting(url: str, settings: PlatformSettings) -> Connect:
    from libs.common.bus.nats.transport import connect

    connected = partial(
        connect,
        url,
        credentials=settings.nats_credentials,
        replicas=settings.stream_replicas,
        max_bytes={
            WORK_IN.name: settings.work_in_max_mb * MIB,
            WORK_OUT.name: settings.work_out_max_mb * MIB,
            WORK_LOG.name: settings.work_log_max_mb * MIB,
            WORK_DONE.name: settings.work_done_max_mb * MIB,
            WORK_OBJECTS.stream.name: settings.work_objects_max_mb * MIB,
        },
        service_version=version(DISTRIBUTION),
        at_once=True,
    )
    return lambda name: connected(name=name)
