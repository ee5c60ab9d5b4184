"""What each queue keeps its items in: servers of this run's own, on disk, on free ports."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from libs.common.bus.nats.server import ServerOptions, nats_server
from tests.postgres_process import postgres_process, postgres_programs
from tools.free_ports import free_port

Store = Callable[[Path], AbstractAsyncContextManager[str]]
"""Starts it in a directory and gives its URL."""

SYNCED_POSTGRES = ("unix_socket_directories=", "listen_addresses=127.0.0.1", "max_connections=100")


def redis(appendfsync: str) -> Store:
    @contextlib.asynccontextmanager
    async def running(directory: Path) -> AsyncIterator[str]:
        if shutil.which("redis-server") is None:
            raise SystemExit("Redis is missing: apt-get install redis-server")
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
        with _process([*command, "--appendonly", "yes", "--appendfsync", appendfsync], directory / "redis.log"):
            yield f"redis://127.0.0.1:{port}/0"

    return running


def postgres() -> Store:
    @contextlib.asynccontextmanager
    async def running(directory: Path) -> AsyncIterator[str]:
        programs = postgres_programs()
        if programs is None:
            raise SystemExit("PostgreSQL is missing: apt-get install postgresql")
        with postgres_process(programs, SYNCED_POSTGRES) as server:
            yield server.url()

    return running


def jetstream(sync_interval: str) -> Store:
    @contextlib.asynccontextmanager
    async def running(directory: Path) -> AsyncIterator[str]:
        options = ServerOptions(directory=directory / "nats", port=free_port(), sync_interval=sync_interval)
        async with nats_server(options) as server:
            yield server.url

    return running


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        time.sleep(0.5)
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended: {log.read_text()[-500:]}")
        try:
            yield
        finally:
            process.terminate()


def environment(**settings: str) -> dict[str, str]:
    """What a child is given: nothing of ours but what is named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESH_", "WORK_"))}
    return {**kept, **settings}
