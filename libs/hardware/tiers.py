"""What class of machine this is. Pure, and decided by what was measured, not by names of products.

| tier | the best usable GPU has |
|---|---|
| `AI_FACTORY` | at least 30 GiB usable and modern compute units (H100, A100, RTX 5090) |
| `GPU_PEER` | at least 20 GiB usable (RTX 4090, 3090, A5000, L4) |
| `GPU_INFRA` | less (RTX 4070, 3060, T4) |
| `CPU_ONLY` | there is no GPU that works |

Usable is what the driver does not keep for itself. A GPU that shares the processor's memory is judged by that memory.
Modern is compute capability 8.0 or newer (NVIDIA), gfx908 or newer of the data centre line, gfx11 or newer (AMD).
"""

import re

from libs.common.contracts.node_registry import Gpu, Inventory, Tier, TierVerdict

FACTORY_MB = 30 * 1024
PEER_MB = 20 * 1024
ORDER = tuple(Tier)
_RANK = {tier: rank for rank, tier in enumerate(ORDER)}
_CAPABILITY = re.compile(r"(\d+)\.(\d+)")
_AMD_ARCHITECTURE = re.compile(r"gfx(\d+)([0-9a-f])([0-9a-f])")


def classify(inventory: Inventory, *, override: Tier | None = None) -> TierVerdict:
    """The tier and why. `override` is the owner's word, which counts more than what was measured."""
    if override is not None:
        return TierVerdict(tier=override, reasons=(f"set to {override} by the machine's owner",))
    judged = [_judge(gpu, inventory.memory.total_mb) for gpu in inventory.gpus]
    broken = tuple(
        f"{gpu.name} ({gpu.uuid}) is not counted: {gpu.problem}" for gpu in inventory.gpus if not gpu.healthy
    )
    usable = [verdict for verdict in judged if verdict is not None]
    if not usable:
        return TierVerdict(tier=Tier.CPU_ONLY, reasons=("there is no GPU that works", *broken))
    best, reason = min(usable, key=lambda verdict: ORDER.index(verdict[0]))
    others = (f"the best of {len(usable)} GPUs decides",) if len(usable) > 1 else ()
    return TierVerdict(tier=best, reasons=(reason, *others, *broken))


def better_or_equal(tier: Tier, least: Tier) -> bool:
    return _RANK[tier] <= _RANK[least]


def usable_mb(gpu: Gpu, ram_mb: int | None) -> int | None:
    """What one program can have of it at most, in MiB; None when that is not known.

    Of a GPU that is divided, its largest part.
    """
    if gpu.mig_devices:
        return max((part.vram_total_mb or 0 for part in gpu.mig_devices), default=None)
    if gpu.vram_total_mb is None:
        return ram_mb if gpu.unified_memory else None
    return max(0, gpu.vram_total_mb - (gpu.vram_reserved_mb or 0))


def _judge(gpu: Gpu, ram_mb: int | None) -> tuple[Tier, str] | None:
    if not gpu.healthy:
        return None
    usable = usable_mb(gpu, ram_mb)
    if usable is None:
        return Tier.GPU_INFRA, f"{gpu.name} does not tell how much memory it has"
    what = f"{gpu.name} has {usable} MiB usable" + (" of the machine's own memory" if gpu.vram_total_mb is None else "")
    if usable >= FACTORY_MB and _modern(gpu.compute_capability):
        return Tier.AI_FACTORY, f"{what} (at least {FACTORY_MB}) and compute capability {gpu.compute_capability}"
    if usable >= FACTORY_MB:
        return Tier.GPU_PEER, f"{what}, but compute capability {gpu.compute_capability or 'unknown'}"
    if usable >= PEER_MB:
        return Tier.GPU_PEER, f"{what} (at least {PEER_MB})"
    return Tier.GPU_INFRA, f"{what} (less than {PEER_MB})"


def _modern(capability: str | None) -> bool:
    nvidia = _CAPABILITY.fullmatch(capability or "")
    if nvidia is not None:
        return (int(nvidia[1]), int(nvidia[2])) >= (8, 0)
    amd = _AMD_ARCHITECTURE.fullmatch(capability or "")
    if amd is None:
        return False
    major, version = int(amd[1]), (int(amd[2], 16), int(amd[3], 16))
    return major >= 11 or (major == 9 and version >= (0, 8))
