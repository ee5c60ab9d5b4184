"""A machine that was told over REST, in the words of an announcement."""

from datetime import datetime

from libs.common.contracts.node_administration import NodeRegistration, RegisteredGpu
from libs.common.contracts.node_registry import Gpu, Inventory, NodeAnnounced, Platform, Tier
from libs.hardware.matching import named
from libs.hardware.tiers import classify

BOOT_ID = "registered-by-rest"
"""Telling the same machine again is no restart."""


def announcement(registration: NodeRegistration, *, at: datetime, heartbeat_seconds: float) -> NodeAnnounced:
    """Raises `Malformed` for a tier or platform that does not exist. What was not told stays unknown."""
    gpus = tuple(_gpu(registration.node_id, index, told) for index, told in enumerate(registration.gpus))
    platform = named(Platform, "platform", registration.platform)
    inventory = Inventory(
        hostname=registration.hostname or registration.node_id,
        platform=platform or (Platform.CUDA if any(gpu.vendor == "nvidia" for gpu in gpus) else Platform.CPU_ONLY),
        operating_system=registration.operating_system,
        cpu=registration.cpu,
        memory=registration.memory,
        gpus=gpus,
    )
    verdict = classify(inventory, override=named(Tier, "tier", registration.tier))
    return NodeAnnounced(
        node_id=registration.node_id,
        boot_id=BOOT_ID,
        at=at,
        tier=verdict.tier,
        tier_reasons=("told over REST, not measured", *verdict.reasons),
        labels=registration.labels,
        inventory=inventory,
        heartbeat_seconds=heartbeat_seconds,
    )


def _gpu(node_id: str, index: int, told: RegisteredGpu) -> Gpu:
    return Gpu(
        uuid=told.uuid or f"{node_id[:100]}-gpu-{index}",
        index=index,
        name=told.name,
        vendor=told.vendor,
        vram_total_mb=told.vram_total_mb,
        vram_free_mb=told.vram_free_mb,
        compute_capability=told.compute_capability,
    )
