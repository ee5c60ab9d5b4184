"""What the GPU orchestrator needs of the machine it is on."""

from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import GpuLink, Memory, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphics:
    """Every GPU and its users, how the GPUs are connected, and what could not be measured."""

    states: tuple[GpuState, ...] = ()
    links: tuple[GpuLink, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What committed reservations: a process (by its number and start) or a container. Several may be of one."""

    reservation_ids: tuple[str, ...]
    pid: int | None = None
    pid_start: int | None = None
    container_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`owners`: which of the processes that were asked about, or descend from a root, belong to which reservations.
    `alive`: whether the root of a reservation was seen. `ram_mb`: what all processes of a root use of RAM, by its
    reservations."""

    owners: Mapping[int, tuple[str, ...]]
    alive: Mapping[str, bool]
    ram_mb: Mapping[tuple[str, ...], int]
    commands: Mapping[int, str]


class Meters(Protocol):
    async def gpus(self) -> Graphics:
        """Every GPU and its users, measured now."""
        ...

    def used_mb(self) -> Awaitable[Mapping[str, int | None] | None]:
        """VRAM in use now, by GPU and part of one, quickly; None where only a whole measurement tells.

        Where it can be, it is asked for in the step of the call. Raises `Unavailable` when awaited.
        """
        ...

    def stalled_ratio(self) -> float | None:
        """In what part of the last 10 s everything waited for memory; None where the kernel does not tell."""
        ...

    def memory_now(self) -> Memory | None:
        """RAM and swap now, quickly; None where they cannot be read."""
        ...

    async def memory(self) -> tuple[Memory, tuple[Problem, ...]]:
        """RAM and swap, measured now, and what could not be."""
        ...


class Processes(Protocol):
    async def start_of(self, pid: int) -> int | None:
        """When a process started, to tell it apart from a later one of its number; None: there is none."""
        ...

    async def obstacle(self, pid: int) -> str | None:
        """Why a process can hold no reservation: what it is, or that most of what runs here descends from it."""
        ...

    async def has_container(self, container_id: str) -> bool:
        """Whether a process of that container can be seen from here."""
        ...

    async def residents(self) -> Mapping[int, int]:
        """How much RAM of its own each process uses, in MiB."""
        ...

    async def commands(self, pids: Collection[int]) -> Mapping[int, str]:
        """What they were started as, of those that are there."""
        ...

    async def families(self, roots: Collection[Root], pids: Collection[int]) -> Family:
        """Who descends from whom, now; and what `pids` were started as."""
        ...
