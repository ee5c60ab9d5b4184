"""Made-up machines, for tests that speak of nodes."""

from datetime import UTC, datetime
from typing import Any

from libs.common.contracts.node_registry import (
    Cpu,
    Gpu,
    GpuBeat,
    Inventory,
    Memory,
    NodeAnnounced,
    NodeHeartbeat,
    Platform,
    Tier,
)

AT = datetime(2030, 1, 1, tzinfo=UTC)


def gpu(number: int = 0, **changes: Any) -> Gpu:
    """An RTX 4090, unless told otherwise."""
    usual = {
        "uuid": f"GPU-{number}",
        "index": number,
        "name": "NVIDIA GeForce RTX 4090",
        "vendor": "nvidia",
        "vram_total_mb": 24564,
        "vram_used_mb": 1000,
        "vram_free_mb": 23100,
        "vram_reserved_mb": 464,
        "compute_capability": "8.9",
    }
    return Gpu.model_validate(usual | changes)


def inventory(*gpus: Gpu, **changes: Any) -> Inventory:
    usual = {
        "hostname": "host",
        "platform": Platform.CUDA if gpus else Platform.CPU_ONLY,
        "operating_system": "Linux",
        "cpu": Cpu(cores=8, threads=16),
        "memory": Memory(total_mb=65536, available_mb=60000),
        "gpus": gpus,
    }
    return Inventory.model_validate(usual | changes)


def announced(node_id: str = "node-1", *gpus: Gpu, boot_id: str = "boot-1", **changes: Any) -> NodeAnnounced:
    usual = {
        "node_id": node_id,
        "boot_id": boot_id,
        "at": AT,
        "tier": Tier.GPU_PEER if gpus else Tier.CPU_ONLY,
        "inventory": inventory(*gpus),
    }
    return NodeAnnounced.model_validate(usual | changes)


def beat(node_id: str = "node-1", sequence: int = 1, *, boot_id: str = "boot-1", **changes: Any) -> NodeHeartbeat:
    usual = {"node_id": node_id, "boot_id": boot_id, "sequence": sequence, "at": AT}
    return NodeHeartbeat.model_validate(usual | changes)


def gpu_beat(number: int = 0, **changes: Any) -> GpuBeat:
    return GpuBeat.model_validate({"uuid": f"GPU-{number}"} | changes)
