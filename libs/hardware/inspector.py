"""Brings the sources together into one picture of this machine."""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from libs.common.contracts.node_registry import (
    Cpu,
    Disk,
    Gpu,
    GpuLink,
    Inventory,
    Memory,
    NetworkAddress,
    Platform,
    Problem,
)
from libs.common.errors import MeshError
from libs.hardware import host
from libs.hardware.amd_probe import PROGRAM as AMDSMI
from libs.hardware.amd_probe import Amd, AmdProbe
from libs.hardware.apple import read_apple
from libs.hardware.aside import Aside
from libs.hardware.cgroup import Groups, Limits, limits_of, memory_limits_of, own_groups
from libs.hardware.cpu import CpuIdentifier, Identity, load_ratio, read_cpu
from libs.hardware.memory import read_memory, stalled_ratio
from libs.hardware.nvidia import NvidiaProbe
from libs.hardware.nvidia_answer import GpuProcess, Nvidia
from libs.hardware.nvml_helper import NvmlHelper
from libs.hardware.reading import Reading, problem

T = TypeVar("T")

SOURCE_SECONDS = 2.0
_APPLE = "Darwin"
_PLATFORMS = {"nvidia": Platform.CUDA, "amd": Platform.ROCM, "apple": Platform.METAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphics:
    """Every GPU and who uses it. GPUs whose users are not told are missing in `processes`."""

    gpus: tuple[Gpu, ...]
    processes: dict[str, tuple[GpuProcess, ...]]
    links: tuple[GpuLink, ...]
    driver_version: str | None
    cuda_version: str | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What changes all the time."""

    load_ratio: float | None
    memory: Memory
    graphics: Graphics


class Inspector:
    """Reads this machine. Blocking sources are read beside the event loop and may take `seconds` each.

    `folder` keeps what is slow to find out; the space of `disks` is reported; `root` is where `proc`, `sys` and `etc`
    are.
    """

    def __init__(
        self,
        *,
        folder: Path,
        disks: Sequence[Path] = (),
        root: Path = Path("/"),
        seconds: float = SOURCE_SECONDS,
        helper: NvmlHelper | None = None,
    ) -> None:
        self._disks = disks
        self._root = root
        self._seconds = seconds
        self._aside = Aside()
        self._identifier = CpuIdentifier(folder, root=root)
        self._nvidia = NvidiaProbe(helper or NvmlHelper(answer_seconds=seconds), root=root)
        amd = NvmlHelper(program=AMDSMI, name="amdsmi", answer_seconds=seconds)
        self._amd = AmdProbe(amd, seconds=seconds, root=root)
        self._turn = asyncio.Lock()
        self._groups: Groups | None = None

    async def inventory(self, *, look_again: bool = False) -> Inventory:
        """Everything. `look_again`: also for drivers that were missing a moment ago."""
        if look_again:
            self._nvidia.look_now()
            self._amd.look_now()
        limits = await self._limits()
        cpu, memory, graphics, disks, network, system = await asyncio.gather(
            self._cpu(limits.value),
            self._memory(limits.value),
            self.graphics(),
            self._disk_space(),
            self._blocking("network", host.read_network, _no_addresses),
            self._blocking("system", lambda: host.read_system(self._root), host.System),
        )
        readings = (limits, cpu, memory, disks, network, system)
        return Inventory(
            hostname=system.value.hostname,
            platform=platform_of(graphics.gpus),
            operating_system=system.value.name,
            container=system.value.container,
            cpu=cpu.value,
            memory=memory.value,
            gpus=graphics.gpus,
            gpu_links=graphics.links,
            disks=disks.value,
            network=network.value,
            driver_version=graphics.driver_version,
            cuda_version=graphics.cuda_version,
            problems=(*(found for reading in readings for found in reading.problems), *graphics.problems),
        )

    async def pulse(self, *, threads: int) -> Pulse:
        """`threads`: how many processors the load is spread over."""
        load, memory, graphics = await asyncio.gather(
            self._blocking("load", lambda: load_ratio(threads), _unknown_load), self.memory(), self.graphics()
        )
        return Pulse(load_ratio=load.value, memory=memory.value, graphics=graphics)

    async def memory(self) -> Reading[Memory]:
        return await self._blocking("memory", self._memory_in_groups, Memory)

    async def graphics(self) -> Graphics:
        """All GPUs, whatever their maker."""
        async with self._turn:
            nvidia, amd, apple = await asyncio.gather(
                self._guarded("nvidia", self._nvidia.read, lambda: Nvidia(processes={})),
                self._guarded("amd", self._amd.read, Amd),
                self._apple(),
            )
        return Graphics(
            gpus=(*nvidia.value.gpus, *amd.value.gpus, *apple.value),
            processes=dict(nvidia.value.processes),
            links=nvidia.value.links,
            driver_version=nvidia.value.driver_version,
            cuda_version=nvidia.value.cuda_version,
            problems=(*nvidia.value.problems, *nvidia.problems, *amd.value.problems, *amd.problems, *apple.problems),
        )

    async def _apple(self) -> Reading[tuple[Gpu, ...]]:
        if platform.system() != _APPLE:
            return Reading(())
        return await self._blocking("apple", read_apple, _no_gpus)

    def used_mb(self) -> Awaitable[Mapping[str, int | None]]:
        """VRAM in use now, of the NVIDIA GPUs and parts of them that were told last: asked when this returns. Raises
        `Unavailable` when awaited."""
        return self._nvidia.used_mb()

    def memory_now(self) -> Memory:
        """RAM and swap from the kernel's own tables, at once: a fraction of a millisecond, less than a thread takes.

        The control group is the one of the last whole reading. Raises what reading the tables raises.
        """
        if self._groups is None:
            return self._memory_in_groups()
        return read_memory(memory_limits_of(self._groups), self._root)

    def stalled_ratio(self) -> float | None:
        return stalled_ratio(self._root)

    async def close(self) -> None:
        await self._nvidia.close()
        await self._amd.close()
        await self._identifier.close()

    def _memory_in_groups(self) -> Memory:
        """Where a process can be moved to another control group, it is looked for anew."""
        self._groups = own_groups(self._root)
        return read_memory(memory_limits_of(self._groups), self._root)

    async def _limits(self) -> Reading[Limits]:
        return await self._blocking("cgroup", self._limits_now, Limits)

    def _limits_now(self) -> Limits:
        self._groups = own_groups(self._root)
        return limits_of(self._groups)

    async def _memory(self, limits: Limits) -> Reading[Memory]:
        return await self._blocking("memory", lambda: read_memory(limits, self._root), Memory)

    async def _cpu(self, limits: Limits) -> Reading[Cpu]:
        identity = await self._guarded("cpu", lambda: self._identifier.identity(seconds=self._seconds), Identity)
        cpu = await self._blocking("cpu", lambda: read_cpu(identity.value, limits), Cpu)
        return Reading(cpu.value, (*identity.problems, *cpu.problems))

    async def _disk_space(self) -> Reading[tuple[Disk, ...]]:
        nested = await self._blocking("disks", lambda: host.read_disks(self._disks), _no_disks)
        return Reading(nested.value.value, (*nested.value.problems, *nested.problems))

    async def _blocking(self, source: str, function: Callable[[], T], otherwise: Callable[[], T]) -> Reading[T]:
        return await self._guarded(source, lambda: self._aside.call(source, function, seconds=self._seconds), otherwise)

    async def _guarded(self, source: str, ask: Callable[[], Awaitable[T]], otherwise: Callable[[], T]) -> Reading[T]:
        """Whatever a source raises costs its field, not the answer."""
        try:
            return Reading(await ask())
        except MeshError as error:
            return Reading(otherwise(), (problem(source, error.message),))
        except Exception as error:  # noqa: BLE001  # sources are foreign code
            return Reading(otherwise(), (problem(source, error),))


def _no_gpus() -> tuple[Gpu, ...]:
    return ()


def _no_addresses() -> tuple[NetworkAddress, ...]:
    return ()


def _no_disks() -> Reading[tuple[Disk, ...]]:
    return Reading(())


def _unknown_load() -> float | None:
    return None


def platform_of(gpus: Sequence[Gpu]) -> Platform:
    """By the first GPU that works; a GPU that does not is no platform to compute on."""
    return next((_PLATFORMS[gpu.vendor] for gpu in gpus if gpu.healthy), Platform.CPU_ONLY)
