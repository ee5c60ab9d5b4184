"""A machine for the simulator from an inventory, such as one attached to a report of a fault."""

import re
from pathlib import Path

from libs.common.contracts.node_registry import Gpu, Inventory
from tests.nvml.machines import Machine, SimulatedGpu

LEVELS = {"INTERNAL": 0, "PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
MOST_LINKS = 18
_CALLS = {
    "vram_total_mb": ("MemoryInfo", "MemoryInfo_v2"),
    "vram_reserved_mb": ("MemoryInfo_v2",),
    "compute_capability": ("CudaComputeCapability",),
    "pci_address": ("PciInfo",),
    "temperature_celsius": ("Temperature",),
    "power_watts": ("PowerUsage",),
    "power_limit_watts": ("EnforcedPowerLimit",),
    "utilization_ratio": ("UtilizationRates",),
    "clock_mhz": ("ClockInfo",),
    "clock_max_mhz": ("MaxClockInfo",),
    "ecc_enabled": ("EccMode",),
    "retired_pages": ("RetiredPages",),
}
"""What a driver did not support, by the field that is null without it."""


def load(path: Path) -> Machine:
    """A machine from the JSON of `GET /api/v1/inventory` in a file."""
    return machine(Inventory.model_validate_json(path.read_bytes()))


def machine(inventory: Inventory) -> Machine:
    """Its NVIDIA GPUs. GPUs that were broken are broken again, the same way as far as it was told."""
    gpus = [gpu for gpu in inventory.gpus if gpu.vendor == "nvidia"]
    major, _, minor = (inventory.cuda_version or "0.0").partition(".")
    return Machine(
        gpus=tuple(_gpu(gpu, inventory, [each.uuid for each in gpus]) for gpu in gpus),
        driver=inventory.driver_version or "",
        cuda=int(major) * 1000 + int(minor) * 10,
    )


def _gpu(gpu: Gpu, inventory: Inventory, uuids: list[str]) -> SimulatedGpu:
    unsupported = {call for field, calls in _CALLS.items() if getattr(gpu, field) is None for call in calls}
    major, _, minor = (gpu.compute_capability or "0.0").partition(".")
    xid = re.match(r"Xid (\d+)", gpu.problem or "")
    return SimulatedGpu(
        uuid=gpu.uuid,
        pci=f"0000{gpu.pci_address}".upper() if gpu.pci_address else None,
        name=gpu.name,
        capability=(int(major), int(minor)),
        memory=(gpu.vram_total_mb or 0, gpu.vram_used_mb or 0, gpu.vram_reserved_mb or 0),
        load=round((gpu.utilization_ratio or 0) * 100),
        temperature=int(gpu.temperature_celsius or 0),
        power=(round((gpu.power_watts or 0) * 1000), round((gpu.power_limit_watts or 0) * 1000)),
        clock=(int(gpu.clock_mhz or 0), int(gpu.clock_max_mhz or 0)),
        ecc=(int(gpu.ecc_enabled or False), gpu.ecc_uncorrected_errors or 0),
        retired=gpu.retired_pages or 0,
        remap_failed=int("worn out" in (gpu.problem or "")),
        migs=tuple(_mig(number, gpu) for number in range(len(gpu.mig_devices))),
        links=_links(gpu, inventory, uuids),
        near=tuple((other, LEVELS[path]) for other, path, _ in _neighbours(gpu, inventory, uuids) if path in LEVELS),
        xid=(int(xid[1]), 1) if xid else (0, 0),
        lost=not gpu.healthy and gpu.vram_used_mb is None,
        unsupported=tuple(sorted(unsupported)),
    )


def _mig(number: int, gpu: Gpu) -> tuple[int, int, int, int]:
    part = gpu.mig_devices[number]
    slices = re.search(r"MIG (\d+)g", part.name)
    total, free = part.vram_total_mb or 0, part.vram_free_mb or 0
    return number, total, total - free, int(slices[1]) if slices else 1


def _neighbours(gpu: Gpu, inventory: Inventory, uuids: list[str]) -> list[tuple[int, str | None, int]]:
    pairs = [
        (link.second if link.first == gpu.uuid else link.first, link)
        for link in inventory.gpu_links
        if gpu.uuid in (link.first, link.second)
    ]
    return [(uuids.index(other), link.path, link.nvlinks) for other, link in pairs if other in uuids]


def _links(gpu: Gpu, inventory: Inventory, uuids: list[str]) -> tuple[tuple[int, int], ...]:
    """More links than a GPU has can only be the same ones, to a switch."""
    counts = [(other, links) for other, _, links in _neighbours(gpu, inventory, uuids) if links]
    if sum(links for _, links in counts) > MOST_LINKS:
        return ((uuids.index(gpu.uuid), max(links for _, links in counts)),)
    return tuple(counts)
