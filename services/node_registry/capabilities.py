"""What of a machine is the same until something happens to it. Pure."""

from typing import Any

from libs.common.contracts.node_registry import Gpu
from services.node_registry.model import Announced

Facts = dict[str, Any]


def capabilities(told: Announced) -> Facts:
    """Without what moves all the time, and without what a reader could not read."""
    machine = told.inventory
    return {
        "tier": told.machine.tier.value,
        "labels": dict(told.machine.labels),
        "hostname": machine.hostname,
        "platform": machine.platform.value,
        "operating_system": machine.operating_system,
        "container": machine.container,
        "cpu": [machine.cpu.model, machine.cpu.architecture, machine.cpu.cores, machine.cpu.threads],
        "memory_mb": [machine.memory.total_mb, machine.memory.limit_mb, machine.memory.swap_total_mb],
        "gpus": [_gpu(gpu) for gpu in machine.gpus],
        "disks_mb": {disk.path: disk.total_mb for disk in machine.disks},
        "network": sorted([each.interface, each.address] for each in machine.network),
        "driver_version": machine.driver_version,
        "cuda_version": machine.cuda_version,
    }


def difference(before: Announced, after: Announced) -> Facts:
    """What changed, as `{fact: {"before": …, "after": …}}`. Empty: nothing."""
    old, new = capabilities(before), capabilities(after)
    return {name: {"before": old[name], "after": new[name]} for name in old if old[name] != new[name]}


def _gpu(gpu: Gpu) -> Facts:
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "vram_total_mb": gpu.vram_total_mb,
        "healthy": gpu.healthy,
        "problem": gpu.problem,
        "mig_devices": [[part.uuid, part.vram_total_mb] for part in gpu.mig_devices],
    }
