"""Our own sockets under uvicorn: bound before anything else starts, closed within a deadline."""

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from libs.common.errors import WrongSetting
from libs.common.kit.http_reading import Reading

_BACKLOG = 512
_DATE_SECONDS = 1.0


def bind(host: str, port: int, *, variable: str) -> socket.socket:
    """A listening socket. Raises `WrongSetting` naming the variable that moves the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise WrongSetting(_why_not(error, host, port, variable)) from None
    listener.setblocking(False)
    return listener


def _why_not(error: OSError | OverflowError, host: str, port: int, variable: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"Port {port} on {host} is taken by another program; stop it or set {variable}."
    if number == errno.EACCES:
        return f"Port {port} on {host} needs more rights than this user has; set {variable} to 1024 or more."
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"HTTP_HOST is {host!r}, which is no address of this machine."
    return f"Port {port} on {host} cannot be opened ({error}); set {variable} or HTTP_HOST."


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, *, drain_seconds: float, closing: Callable[[], None]
) -> AsyncIterator[None]:
    """Answer requests on `listener`.

    On leaving, no new connection is taken, `closing` is called (it ends streams that have no end), and requests in hand
    have `drain_seconds`.
    """
    server = _Server(app, drain_seconds)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]), name=f"http:{listener.getsockname()[1]}")
        await server.opened.wait()
        try:
            yield
        finally:
            server.stopping.set()
            closing()


class _Server(uvicorn.Server):
    """Leaves signals to the runner, and sleeps instead of looking ten times a second whether it should stop."""

    def __init__(self, app: ASGIApp, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Reading,
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(drain_seconds),
            )
        )
        self.opened = asyncio.Event()
        self.stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened.set()

    async def main_loop(self) -> None:
        while not self.stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_SECONDS):
                    await self.stopping.wait()
