"""NVIDIA GPUs, as the NVML process tells them, and what must be remembered about them between two questions."""

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from libs.common.contracts.node_registry import Gpu, GpuLink, Problem
from libs.common.errors import Unavailable
from libs.hardware.nvidia_answer import SOURCE, Nvidia, from_answer, links_of, pids_of
from libs.hardware.nvml_helper import NvmlHelper
from libs.hardware.pci import NVIDIA, PciBus
from libs.hardware.reading import mib, problem, text

LOOK_AGAIN_SECONDS = 60.0
"""How often NVML is started anew where it could not be had, and where it has lost a GPU: it does not see it return."""
NAMES_SECONDS = 10.0
"""How long a process keeps the name that was read: it seldom changes, and each is a file of the kernel."""
MISSES = 2
"""So many questions without an answer make GPUs unhealthy: one that is late happens to a busy machine."""
SILENT = "the NVIDIA driver does not answer"
_MEASURED = (
    *("vram_used_mb", "vram_free_mb", "temperature_celsius", "power_watts", "utilization_ratio", "clock_mhz"),
    "thermal_slowdown",
)


class NvidiaProbe:
    """Asks NVML where there is an NVIDIA device or the library. No GPU is a normal answer.

    A fatal Xid keeps its GPU unhealthy for as long as this lives: NVML does not tell whether it was reset since.
    """

    def __init__(
        self, helper: NvmlHelper, *, root: Path = Path("/"), look_again_seconds: float = LOOK_AGAIN_SECONDS
    ) -> None:
        self._helper = helper
        self._root = root
        self._bus = PciBus(root)
        self._pause = look_again_seconds
        self._absent: str | None = None
        self._fault = False
        self._lost = False
        self._look_again_at = 0.0
        self._devices: int | None = None
        self._last = Nvidia(processes={})
        self._misses = 0
        self._xids: dict[str, str] = {}
        self._told_links: Any = None
        self._links: tuple[GpuLink, ...] = ()
        self._names: dict[int, str | None] = {}
        self._named_at = float("-inf")

    async def read(self) -> Nvidia:
        now = asyncio.get_running_loop().time()
        devices = await self._plugged()
        if self._absent is not None and now < self._look_again_at:
            return Nvidia(processes={}, problems=self._missed(devices))
        if self._lost and now >= self._look_again_at:
            self._lost = False
            await self._helper.restart()
        try:
            return await self._ask(now, devices)
        except Unavailable as error:
            return self._without_answer(error)

    def used_mb(self) -> Awaitable[Mapping[str, int | None]]:
        """Of each GPU and each part of one that the last reading told, quickly: asked when this returns. Raises
        `Unavailable` when awaited."""
        if self._absent is not None or not self._last.gpus:
            return _used(None)
        return _used(self._helper.begin("used"))

    async def _ask(self, now: float, devices: int) -> Nvidia:
        answer = await self._helper.ask()
        self._misses = 0
        self._absent, self._fault = answer.get("absent"), bool(answer.get("fault"))
        if self._absent is not None:
            await self._helper.restart()
            self._look_again_at, self._last = now + self._pause, Nvidia(processes={})
            return Nvidia(processes={}, problems=self._missed(devices))
        self._xids |= {told["uuid"]: told["xid"] for told in answer["gpus"] if told.get("xid")}
        if answer.get("lost") and not self._lost:
            self._look_again_at = now + self._pause
        self._lost = bool(answer.get("lost"))
        if answer.get("links") != self._told_links:
            self._told_links, self._links = answer.get("links"), links_of(answer)
        found = from_answer(answer, self._names_of(pids_of(answer), now), self._links)
        self._last = replace(found, gpus=tuple(self._condemned(gpu) for gpu in found.gpus))
        return self._last

    def _names_of(self, pids: Collection[int], now: float) -> Mapping[int, str | None]:
        if now - self._named_at >= NAMES_SECONDS:
            self._named_at, self._names = now, {}
        known = self._names
        self._names = {pid: known[pid] if pid in known else text(f"{self._root}/proc/{pid}/comm") for pid in pids}
        return self._names

    def _condemned(self, gpu: Gpu) -> Gpu:
        xid = self._xids.get(gpu.uuid)
        return gpu if xid is None else gpu.model_copy(update={"healthy": False, "problem": xid})

    def _without_answer(self, error: Unavailable) -> Nvidia:
        """Who was there, with nothing measured. A helper that is only just starting is no silence."""
        self._misses += not self._helper.starting
        update: dict[str, object] = dict.fromkeys(_MEASURED)
        silent = {"healthy": False, "problem": SILENT} if self._misses >= MISSES else {}
        gpus = tuple(gpu.model_copy(update=update | (silent if gpu.healthy else {})) for gpu in self._last.gpus)
        return replace(self._last, gpus=gpus, processes={}, problems=(problem(SOURCE, error.message),))

    async def _plugged(self) -> int:
        """How many NVIDIA devices the kernel sees. Another number than before: NVML has to look again."""
        devices = sum(device.vendor == NVIDIA for device in self._bus.graphics_devices())
        if self._devices is not None and devices != self._devices:
            await self._helper.restart()
            self._absent = None
        self._devices = devices
        return devices

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


async def _used(asked: Awaitable[dict[str, Any]] | None) -> Mapping[str, int | None]:
    answer = {} if asked is None else await asked
    return {uuid: mib(used) for uuid, used in answer.get("used", {}).items()}
