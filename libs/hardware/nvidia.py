"""NVIDIA GPUs in the words of the contracts, from what the NVML process answered."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.common.contracts.node_registry import Gpu, GpuLink, MigDevice, Problem
from libs.common.errors import Unavailable
from libs.hardware.nvml_helper import NvmlHelper
from libs.hardware.pci import NVIDIA, graphics_devices
from libs.hardware.reading import mib, problem, text

SOURCE = "nvidia"
LOOK_AGAIN_SECONDS = 60.0
"""How often we try again where NVML could not be had."""
_UNIFIED = re.compile(r"GB10|Orin|Thor|Xavier|Tegra", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """`used_mb` is None when the driver does not tell."""

    pid: int
    kind: str
    name: str | None = None
    used_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """`processes` by GPU; a GPU whose processes the driver does not tell is missing there."""

    gpus: tuple[Gpu, ...] = ()
    processes: Mapping[str, tuple[GpuProcess, ...]]
    links: tuple[GpuLink, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    problems: tuple[Problem, ...] = ()


class NvidiaProbe:
    """Asks NVML where there is an NVIDIA device or the library. No GPU is a normal answer."""

    def __init__(self, helper: NvmlHelper, *, root: Path = Path("/")) -> None:
        self._helper = helper
        self._root = root
        self._absent: str | None = None
        self._fault = False
        self._look_again_at = 0.0
        self._devices: int | None = None

    async def read(self) -> Nvidia:
        now = asyncio.get_running_loop().time()
        devices = sum(device.vendor == NVIDIA for device in graphics_devices(self._root))
        if self._devices is not None and devices != self._devices:
            await self._helper.restart()
            self._absent = None
        self._devices = devices
        if self._absent is None or now >= self._look_again_at:
            try:
                answer = await self._helper.ask()
            except Unavailable as error:
                return Nvidia(processes={}, problems=(problem(SOURCE, error.message),))
            self._absent, self._fault = answer.get("absent"), bool(answer.get("fault"))
            if self._absent is None:
                return from_answer(answer, self._root)
            await self._helper.restart()
            self._look_again_at = now + LOOK_AGAIN_SECONDS
        return Nvidia(processes={}, problems=self._missed(devices))

    def _missed(self, devices: int) -> tuple[Problem, ...]:
        """A machine without NVIDIA devices and without the library lacks nothing."""
        if devices:
            return (problem(SOURCE, f"{devices} NVIDIA device(s) on the PCI bus, but {self._absent}"),)
        return (problem(SOURCE, self._absent or ""),) if self._fault else ()

    def look_now(self) -> None:
        """Somebody asked on purpose: do not wait for the next time."""
        self._look_again_at = 0.0

    async def close(self) -> None:
        await self._helper.close()


def from_answer(answer: Mapping[str, Any], root: Path = Path("/")) -> Nvidia:
    told = answer["gpus"]
    return Nvidia(
        gpus=tuple(_gpu(gpu) for gpu in told),
        processes={
            gpu["uuid"]: tuple(_process(process, root) for process in gpu["processes"])
            for gpu in told
            if gpu.get("processes") is not None
        },
        links=tuple(GpuLink.model_validate(link) for link in answer.get("links", ())),
        driver_version=answer.get("driver_version"),
        cuda_version=answer.get("cuda_version"),
        problems=tuple(Problem(source=each["source"], message=each["message"]) for each in answer["problems"]),
    )


def _gpu(told: Mapping[str, Any]) -> Gpu:
    """A machine whose GPU uses the processor's memory tells no VRAM: that is marked, never guessed."""
    total = told.get("total")
    return Gpu(
        uuid=told["uuid"],
        index=told["index"],
        name=told["name"],
        vendor="nvidia",
        vram_total_mb=mib(total),
        vram_used_mb=mib(told.get("used")),
        vram_free_mb=mib(told.get("free")),
        vram_reserved_mb=mib(told.get("reserved")),
        compute_capability=told.get("compute_capability"),
        pci_address=told.get("pci_address"),
        temperature_celsius=told.get("temperature_celsius"),
        power_watts=told.get("power_watts"),
        power_limit_watts=told.get("power_limit_watts"),
        utilization_ratio=told.get("utilization_ratio"),
        clock_mhz=told.get("clock_mhz"),
        clock_max_mhz=told.get("clock_max_mhz"),
        ecc_enabled=told.get("ecc_enabled"),
        ecc_uncorrected_errors=told.get("ecc_uncorrected_errors"),
        retired_pages=told.get("retired_pages"),
        mig_devices=tuple(_mig(part) for part in told.get("migs", ())),
        unified_memory=total is None and bool(_UNIFIED.search(told["name"])),
        healthy=told["healthy"],
        problem=told.get("problem"),
    )


def _mig(told: Mapping[str, Any]) -> MigDevice:
    return MigDevice(
        uuid=told["uuid"],
        name=told["name"] or "MIG device",
        vram_total_mb=mib(told.get("total")),
        vram_free_mb=mib(told.get("free")),
    )


def _process(told: Mapping[str, Any], root: Path) -> GpuProcess:
    name = text(root / f"proc/{told['pid']}/comm")
    return GpuProcess(pid=told["pid"], kind=told["kind"], name=name, used_mb=mib(told.get("used")))
