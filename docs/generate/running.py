"""The services as they are built, without a network: what the references on REST, metrics and settings look into."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from os import environ  # noqa: TID251  # to hide it from what is built here
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

import libs
import services
from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.kit.http import Version, http_door
from libs.common.kit.metrics import Metrics
from libs.common.kit.service import Build, Platform
from libs.common.kit.settings import environment_names


@dataclass(frozen=True, kw_only=True)
class Built:
    """What can be known of a service without starting it."""

    name: str
    port: int
    openapi: Mapping[str, Any]
    metrics: CollectorRegistry
    checks: tuple[str, ...]


@cache
def service_names() -> tuple[str, ...]:
    """Every service there is, in alphabetical order."""
    folders = [Path(folder) for folder in services.__path__]
    packages = [found.name for found in iter_modules(services.__path__) if found.ispkg]
    return tuple(
        sorted(name for name in packages if any((folder / name / "wiring.py").is_file() for folder in folders))
    )


@cache
def import_everything() -> None:
    """So that classes are known that only importing makes known. Programs that run as children are left alone."""
    for package in (libs, *(import_module(f"services.{name}") for name in service_names())):
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            if not _is_program(found.name):
                import_module(found.name)


@cache
def all_settings() -> tuple[type[BaseSettings], ...]:
    """Every settings class of ours: those of the kit first, then those of the services by name."""
    import_everything()
    ours = {kind for kind in _below(BaseSettings) if kind.__module__.startswith(("libs.", "services."))}
    return tuple(sorted(ours, key=lambda kind: (kind.__module__, kind.__qualname__)))


@cache
def built_services() -> tuple[Built, ...]:
    with _default_settings():
        return asyncio.run(_build_all())


async def _build_all() -> tuple[Built, ...]:
    server = MemoryServer(clock=SystemClock())
    builds = {name: import_module(f"services.{name}.wiring").build for name in service_names()}
    with TemporaryDirectory() as folder:
        return tuple([await _build(name, build, server, Path(folder)) for name, build in builds.items()])


async def _build(name: str, build: Build, server: MemoryServer, folder: Path) -> Built:
    clock = SystemClock()
    metrics = Metrics(name, clock, version="", python="")
    async with server.connect(name) as transport:
        bus = Bus(transport, name=name, observer=SilentObserver(), clock=clock)
        metrics.watch_connection(bus)
        service = build(
            Platform(
                bus=bus, clock=clock, metrics=metrics.registry, node_id="node-1", boot_id="boot-1", data_dir=folder
            )
        )
        version = Version(service=name, version="1", python="3", node_id="node-1", boot_id="boot-1")
        door = http_door(service.router, version=version, checks=service.checks, metrics=metrics, clock=clock)
    return Built(
        name=name,
        port=service.port,
        openapi=door.app.openapi(),
        metrics=metrics.registry,
        checks=("nats", *service.checks),
    )


@contextmanager
def _default_settings() -> Iterator[None]:
    """No setting of this machine's environment is seen."""
    known = {variable.name for kind in all_settings() for variable in environment_names(kind)}
    with patch.dict(environ):
        for name in known & set(environ):
            del environ[name]
        yield


def _below(kind: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    for narrower in kind.__subclasses__():
        yield narrower
        yield from _below(narrower)


def _is_program(module: str) -> bool:
    root = Path(services.__file__ or "").parents[1]
    file = root.joinpath(*module.split(".")).with_suffix(".py")
    return file.is_file() and "__name__ ==" in file.read_text(encoding="utf-8")
