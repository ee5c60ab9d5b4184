"""Small services for the tests of the runner."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter

from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import SystemClock
from libs.common.contracts.base import Call, Message
from libs.common.errors import MeshError
from libs.common.kit.runner import run
from libs.common.kit.service import Build, Check, Loop, Platform, Service
from libs.common.kit.settings import PlatformSettings, load


class Word(Message):
    text: str


ECHO = Call(subject="test.echo.v1", request=Word, reply=Word, owner="echo", summary="Says it again.")


async def nothing() -> None:
    return None


def service(
    *,
    loops: Sequence[Loop] = (),
    router: APIRouter | None = None,
    checks: Mapping[str, Check] | None = None,
    lifespan: Callable[[], Any] = nullcontext,
    subscriptions: Callable[[Platform], Any] | None = None,
    port: int = 0,
    platforms: list[Platform] | None = None,
) -> Build:
    def build(platform: Platform) -> Service:
        if platforms is not None:
            platforms.append(platform)
        return Service(
            port=port,
            subscriptions=(lambda: subscriptions(platform)) if subscriptions else nothing,
            loops=loops,
            router=router or APIRouter(),
            checks=checks or {},
            lifespan=lifespan,
        )

    return build


@dataclass
class Running:
    """A mesh in this process, on an in-memory message system. `failure` is what it ended with."""

    directory: str
    server: MemoryServer = field(default_factory=lambda: MemoryServer(clock=SystemClock()))
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failure: MeshError | None = None

    def settings(self, **more: str) -> PlatformSettings:
        return load(PlatformSettings, {"MESH_DATA_DIR": self.directory, "SHUTDOWN_SECONDS": "2", **more})

    async def run(self, builds: Mapping[str, Build], **more: str) -> None:
        """Until it ends by itself or `stop` is set. A failure is kept, not raised."""
        try:
            async with asyncio.timeout(20):
                await run(builds, self.settings(**more), stop=self.stop, ready=self.ready, connect=self.server.connect)
        except MeshError as error:
            self.failure = error

    @asynccontextmanager
    async def up(self, builds: Mapping[str, Build], **more: str) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.run(builds, **more))
            async with asyncio.timeout(10):
                await self.ready.wait()
            try:
                yield
            finally:
                self.stop.set()
