"""What is worth telling at once, and what of a machine must not be forgotten."""

from collections.abc import Sequence
from typing import Any

from libs.common.contracts.node_registry import Gpu, Inventory

_MOVING: Any = {
    "cpu": {"frequency_mhz"},
    "memory": {"available_mb", "swap_free_mb"},
    "disks": {"__all__": {"free_mb"}},
    "gpus": {
        "__all__": {
            "vram_used_mb",
            "vram_free_mb",
            "temperature_celsius",
            "power_watts",
            "utilization_ratio",
            "clock_mhz",
            "thermal_slowdown",
            "mig_devices",
        }
    },
}
"""What moves all the time: heartbeats tell it."""


def standing(inventory: Inventory) -> dict[str, Any]:
    """What of a machine is the same until something happens to it."""
    return inventory.model_dump(exclude=_MOVING) | {"mig_devices": [_parts(gpu) for gpu in inventory.gpus]}


def changed(before: Inventory | None, now: Inventory) -> bool:
    return before is None or standing(before) != standing(now)


def gpus_changed(before: Sequence[Gpu], now: Sequence[Gpu]) -> bool:
    """A GPU came, went, broke, was mended or was divided anew."""
    return [_lasting(gpu) for gpu in before] != [_lasting(gpu) for gpu in now]


def _lasting(gpu: Gpu) -> tuple[object, ...]:
    return gpu.uuid, gpu.healthy, gpu.problem, _parts(gpu)


def _parts(gpu: Gpu) -> list[tuple[str, int | None]]:
    return [(part.uuid, part.vram_total_mb) for part in gpu.mig_devices]


def with_missing(before: Sequence[Gpu], now: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs of now, and those that are gone: unhealthy, with nothing measured, until the detector starts anew."""
    present = {gpu.uuid for gpu in now}
    return (*now, *(_gone(gpu) for gpu in before if gpu.uuid not in present))


def _gone(gpu: Gpu) -> Gpu:
    return gpu.model_copy(
        update={
            "healthy": False,
            "problem": gpu.problem or "it is not there any more",
            "vram_used_mb": None,
            "vram_free_mb": None,
            "temperature_celsius": None,
            "power_watts": None,
            "utilization_ratio": None,
            "clock_mhz": None,
            "thermal_slowdown": None,
            "mig_devices": (),
        }
    )
