"""An inventory as lines of a table, for a person."""

from collections.abc import Iterator

from libs.common.contracts.node_registry import Gpu, Inventory, TierVerdict


def rows(inventory: Inventory, verdict: TierVerdict) -> list[tuple[str, str]]:
    """Pairs of a name and what was found."""
    return [*_machine(inventory, verdict), *_parts(inventory)]


def _machine(inventory: Inventory, verdict: TierVerdict) -> Iterator[tuple[str, str]]:
    yield "Machine", inventory.hostname + (" (in a container)" if inventory.container else "")
    yield "System", inventory.operating_system
    yield "Platform", str(inventory.platform)
    yield "Tier", f"{verdict.tier}: {'; '.join(verdict.reasons)}"


def _parts(inventory: Inventory) -> Iterator[tuple[str, str]]:
    cpu, memory = inventory.cpu, inventory.memory
    yield (
        "CPU",
        f"{cpu.model or 'unknown'}, {_or(cpu.cores)} cores, {_or(cpu.threads)} threads, {_or(cpu.architecture)}",
    )
    limit = f", limited to {memory.limit_mb} MiB" if memory.limit_mb is not None else ""
    yield "RAM", f"{_or(memory.available_mb)} of {_or(memory.total_mb)} MiB available{limit}"
    yield "Swap", f"{_or(memory.swap_free_mb)} of {_or(memory.swap_total_mb)} MiB free"
    for gpu in inventory.gpus:
        yield f"GPU {gpu.index}", _gpu(gpu)
    if inventory.driver_version:
        yield "NVIDIA driver", f"{inventory.driver_version}, CUDA {_or(inventory.cuda_version)}"
    for disk in inventory.disks:
        yield "Disk", f"{disk.path}: {disk.free_mb} of {disk.total_mb} MiB free"
    for address in inventory.network:
        speed = f", {address.speed_mbps} Mbit/s" if address.speed_mbps else ""
        yield "Network", f"{address.interface} {address.address}{speed}"
    for problem in inventory.problems:
        yield "Problem", f"{problem.source}: {problem.message}"


def _gpu(gpu: Gpu) -> str:
    memory = f"{_or(gpu.vram_free_mb)} of {_or(gpu.vram_total_mb)} MiB free"
    if gpu.unified_memory:
        memory = "uses the machine's own memory"
    health = "" if gpu.healthy else f", NOT USABLE: {gpu.problem}"
    return f"{gpu.name}, {memory}, compute capability {_or(gpu.compute_capability)}, {gpu.uuid}{health}"


def _or(value: object) -> str:
    return "unknown" if value is None else str(value)
