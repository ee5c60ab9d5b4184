"""A service is a value: two doors, some loops, some checks. `runner.py` brings it to life."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from libs.common.archive.archive import Archive
from libs.common.archive.archive_memory import MemoryArchive
from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.streams import Bucket, Stream

Loop = Callable[[], Coroutine[None, None, None]]
"""Runs until cancelled. If it returns or raises, the process ends: there are no half-dead services."""

Check = Callable[[], Awaitable[str | None]]
"""None when all is well, or a `Remark` about it; else the reason why the service is not ready, or a `Degraded` one why
it is not whole."""


class Degraded(str):
    """Something is wrong, but the service does its work: it stays ready, and readiness tells this reason."""

    __slots__ = ()


class Remark(str):
    """Nothing is wrong: the service is ready, and readiness tells this beside its `ok`."""

    __slots__ = ()


def degraded_while(problem: Callable[[], str | None], *, untried: Callable[[], bool] = lambda: False) -> Check:
    """A check of something that a service works on without, such as the archive; it only waits for the first try."""

    async def check() -> str | None:
        if untried():
            return "it is being asked for the first time"
        reason = problem()
        return None if reason is None else Degraded(reason)

    return check


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """What the kit hands a service to stand on.

    `node_id` names this machine, `machine_boot` the time since it was started, `boot_id` that since the process was;
    everything kept on it is under `data_dir`. `metrics` is the service's own registry.
    `archive` opens the process's archive when a service first asks for it, and connects when it is first used; without
    a kit it is one in memory.
    """

    bus: Bus
    clock: Clock
    metrics: CollectorRegistry
    node_id: str
    boot_id: str
    data_dir: Path
    machine_boot: str = "unknown"
    archive: Callable[[], Archive] = MemoryArchive


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What a service consists of.

    Brought up in the order of the fields below and taken down in the reverse: the HTTP door opens on `port`, to tell of
    the start alone, streams are declared, `lifespan` is entered, `subscriptions` opens the NATS door, `loops` start,
    the HTTP door lets in everything. `streams` are those that this service owns: its settings say how large they are.
    Those it only `uses` it makes where they are missing.
    """

    port: int
    streams: Sequence[Stream] = ()
    uses: Sequence[Stream] = ()
    buckets: Sequence[Bucket] = ()
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    subscriptions: Callable[[], Awaitable[None]]
    loops: Sequence[Loop] = ()
    router: APIRouter
    checks: Mapping[str, Check] = field(default_factory=dict)


Build = Callable[[Platform], Service]
