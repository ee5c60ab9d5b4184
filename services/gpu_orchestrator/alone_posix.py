"""By a name or a file that the kernel lets one process have."""

import asyncio
import fcntl
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from libs.common.errors import WrongSetting

WAIT_SECONDS = 5.0
"""Who is just ending gets as long."""
LOOK_SECONDS = 0.1
NAME = "compute-mesh/gpu_orchestrator"
OTHERWISE = Path("/tmp/compute-mesh-gpu-orchestrator.lock")  # the one place that all users share


_Held = Callable[[], None]
"""Lets go."""


class PosixAlone:
    """With `file` by a lock on it; else, on Linux, by `name` among the sockets of the machine's network, where nobody
    can delete it, or by a file in its place."""

    def __init__(self, file: Path | None = None, *, name: str = NAME, wait_seconds: float = WAIT_SECONDS) -> None:
        self._take: Callable[[], _Held | None]
        self._holder: Callable[[], int | None]
        if file is None and sys.platform == "linux":
            self._take, self._holder = lambda: _by_name(name), lambda: _named(name)
        else:
            path = file or OTHERWISE
            self._take, self._holder = lambda: _by_file(path), lambda: _written(path)
        self._wait_seconds = wait_seconds

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        held = await self._taken()
        try:
            yield
        finally:
            held()

    async def _taken(self) -> _Held:
        for _ in range(round(self._wait_seconds / LOOK_SECONDS)):
            if (held := self._take()) is not None:
                return held
            await asyncio.sleep(LOOK_SECONDS)
        pid = self._holder()
        who = "another GPU orchestrator" if pid is None else f"another GPU orchestrator, process {pid},"
        raise WrongSetting(
            f"{who} gives away the memory of this machine; stop it. Only if the two have neither GPUs nor RAM in"
            " common, name a file for this one in GPU_ORCHESTRATOR_LOCK."
        )


def _by_name(name: str) -> _Held | None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
        listener.listen(1)
    except OSError:
        listener.close()
        return None
    return listener.close


def _named(name: str) -> int | None:
    """The process that has the name; None where it is of another container, whose numbers mean nothing here."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        asking.connect(f"\0{name}")
        told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[0]) or None
    return None


def _by_file(path: Path) -> _Held | None:
    """Raises `WrongSetting`."""
    try:
        descriptor = _open(path)
    except OSError as error:
        raise WrongSetting(
            f"GPU_ORCHESTRATOR_LOCK is '{path}', which cannot be opened ({error.strerror}); choose another file."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    with suppress(OSError):  # a file of another user: its lock is ours all the same
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return lambda: os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _written(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None
