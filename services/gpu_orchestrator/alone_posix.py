"""Whether this is the only orchestrator of the machine, by a name or a file that the kernel lets one process have."""

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from libs.common.errors import WrongSetting

NAME = "compute-mesh/gpu_orchestrator"
OTHERWISE = Path("/tmp/compute-mesh-gpu-orchestrator.lock")  # the one place that all users share

_Held = Callable[[], None]
"""Lets go."""


class PosixAlone:
    """With `file` by a lock on it; else, on Linux, by `name` among the sockets of the machine's network, where nobody
    can delete it, or by a file in its place. The kernel lets go, however a process ends."""

    def __init__(self, file: Path | None = None, *, name: str = NAME) -> None:
        self._take: Callable[[], _Held | None]
        self._holder: Callable[[], int | None]
        if file is None and sys.platform == "linux":
            self._take, self._holder = lambda: _by_name(name), lambda: _named(name)
        else:
            path = file or OTHERWISE
            self._take, self._holder = lambda: _by_file(path), lambda: _written(path)
        self._let_go: _Held | None = None
        self._pid: int | None = None

    def problem(self) -> str | None:
        """Who else gives away this machine's memory; None from when nobody does. Raises `WrongSetting`."""
        self._let_go = self._let_go or self._take()
        if self._let_go is not None:
            return None
        self._pid = self._holder() or self._pid
        who = "another GPU orchestrator" + (f", process {self._pid}," if self._pid else "")
        return (
            f"{who} gives away the memory of this machine too: what the one promised, the other learns when it is used."
            " Stop one of them; where they have neither GPUs nor RAM in common, give each a GPU_ORCHESTRATOR_LOCK"
        )

    def close(self) -> None:
        if self._let_go is not None:
            self._let_go()
            self._let_go = None


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
    """The process that has the name; None where it is of another container, whose numbers mean nothing here, and for
    those who ask once its queue is full: it answers nobody."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
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
