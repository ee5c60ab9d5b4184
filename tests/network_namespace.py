"""A network namespace of its own, as a second machine has it, and a way from there to a port of this one's loopback."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

NEEDED = "no network namespace can be made here: apt-get install iproute2, and run as root"
CHUNK_BYTES = 65536


@dataclass(frozen=True)
class NetworkNamespace:
    """`outside` is this machine as the namespace reaches it, `inside` the namespace as this machine does."""

    name: str
    outside: str
    inside: str

    def entering(self, command: Sequence[str]) -> tuple[str, ...]:
        """Python's arguments that become this command in there, with the same process id."""
        enter = "import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', *sys.argv[1:]])"
        return ("-c", enter, self.name, *command)

    @contextlib.contextmanager
    def forwarded(self, port: int) -> Iterator[int]:
        """The port at `outside` where a port of the loopback is reached."""
        with socket.create_server((self.outside, 0)) as door:
            threading.Thread(target=_forward, args=(door, port), daemon=True).start()
            yield int(door.getsockname()[1])


@contextlib.contextmanager
def network_namespace() -> Iterator[NetworkNamespace]:
    """Skips the test, naming what is lacking, where none can be made."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip(NEEDED)
    number = os.getpid()
    found = NetworkNamespace(f"mesh-{number}", f"10.214.{number % 250}.1", f"10.214.{number % 250}.2")
    pair = f"meshv{number}"
    _ip("netns", "add", found.name)
    try:
        _ip("link", "add", pair, "type", "veth", "peer", "name", "eth0", "netns", found.name)
        _ip("addr", "add", f"{found.outside}/24", "dev", pair)
        _ip("link", "set", pair, "up")
        _ip("-n", found.name, "addr", "add", f"{found.inside}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip("-n", found.name, "link", "set", name, "up")
        _ip("-n", found.name, "route", "add", "default", "via", found.outside)
        yield found
    finally:
        _ip("netns", "del", found.name)  # and the pair with it


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _forward(door: socket.socket, port: int) -> None:
    while True:
        try:
            far, _ = door.accept()
        except OSError:
            return  # it was closed: the test is over
        near = socket.create_connection(("127.0.0.1", port))
        for one, other in ((far, near), (near, far)):
            threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Until either ends; then both do, and whoever carries the other way closes the target."""
    with source:
        with contextlib.suppress(OSError):
            while piece := source.recv(CHUNK_BYTES):
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
