"""The machine's name, its system, whether we are in a container, its disks and addresses."""

import platform
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.common.contracts.node_registry import Disk, NetworkAddress, Problem
from libs.hardware.reading import MIB, Reading, problem, text

_CONTAINER_MARKS = (".dockerenv", "run/.containerenv", "run/systemd/container")
_CONTAINER_GROUPS = re.compile(r"/(docker|kubepods|lxc|containerd|libpod|podman)")
_VIRTUAL_PAIRS = re.compile(r"^(veth|cni|flannel|cali)")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    hostname: str = "unknown"
    name: str = "unknown"
    container: bool = False


def read_system(root: Path = Path("/")) -> System:
    return System(hostname=socket.gethostname(), name=operating_system(root), container=in_container(root))


def operating_system(root: Path = Path("/")) -> str:
    """The distribution's name with the kernel, or what Python knows of other systems."""
    for line in (text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            name = line.removeprefix("PRETTY_NAME=").strip("\"'")
            return f"{name}, {platform.system()} {platform.release()}"
    return platform.platform()


def in_container(root: Path = Path("/")) -> bool:
    if any((root / mark).exists() for mark in _CONTAINER_MARKS):
        return True
    return bool(_CONTAINER_GROUPS.search(text(root / "proc/1/cgroup") or ""))


def read_disks(folders: Iterable[Path]) -> Reading[tuple[Disk, ...]]:
    """The space where `folders` are, or will be once they are made."""
    import psutil

    disks: dict[str, Disk] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            usage = psutil.disk_usage(str(_existing(folder)))
        except OSError as error:
            problems.append(problem("disks", error))
            continue
        path = str(folder.absolute())
        disks[path] = Disk(path=path, total_mb=usage.total // MIB, free_mb=usage.free // MIB)
    return Reading(tuple(disks.values()), tuple(problems))


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def read_network() -> tuple[NetworkAddress, ...]:
    """Addresses by which others may reach this machine: of interfaces that are up, without loopback and link-local."""
    import psutil

    states = psutil.net_if_stats()
    found: list[NetworkAddress] = []
    for interface, addresses in sorted(psutil.net_if_addrs().items()):
        state = states.get(interface)
        if state is None or not state.isup or _VIRTUAL_PAIRS.match(interface):
            continue
        speed = _speed(state.speed)
        found.extend(
            NetworkAddress(interface=interface, address=address.address, speed_mbps=speed)
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6) and _reachable(address.address)
        )
    return tuple(found)


def _speed(told: int) -> int | None:
    """Virtual interfaces tell 0 or nonsense."""
    return told if 0 < told < 2**31 and told != 65535 else None


def _reachable(address: str) -> bool:
    local: Sequence[str] = ("127.", "169.254.", "fe80:")
    return address != "::1" and not address.startswith(tuple(local))
