"""Ports for the servers of tests and benchmarks: free now, and handed to nobody else for a good while.

The system gives ports of its ephemeral range to outgoing connections: a port of that range that was free a moment ago
may be taken before our server listens on it. So these lie below that range, in a block that is one process's as long
as it lives: it holds the block's first port until it ends.
"""

import itertools
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LOWEST, BLOCK = 10_240, 200
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Raises `RuntimeError` where every block is in use, or every port of ours."""
    ports = _block()
    found = list(itertools.islice((port for port in itertools.islice(ports, BLOCK - 1) if _is_free(port)), count))
    if len(found) < count:
        raise RuntimeError(f"{count} free ports were wanted, of the {BLOCK - 1} of this process {len(found)} are free")
    return found


@cache
def _block() -> Iterator[int]:
    for first in range(LOWEST, _end() - BLOCK + 1, BLOCK):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
        except OSError:
            lock.close()
            continue
        lock.detach()
        return itertools.cycle(range(first + 1, first + BLOCK))
    raise RuntimeError(f"every block of ports below {_end()} is in use")


def _end() -> int:
    """Where the ephemeral range begins; 32,768 is Linux' own choice (ip-sysctl, `ip_local_port_range`)."""
    return int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
