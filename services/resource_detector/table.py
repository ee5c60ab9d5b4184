"""An inventory for a person."""

from collections.abc import Iterator

from libs.common.contracts.node_registry import Gpu, Inventory, TierVerdict

BROKEN = "NOT USABLE"


def rows(inventory: Inventory, verdict: TierVerdict) -> list[tuple[str, str]]:
    """Pairs of a name and what was found, in one line or several."""
    return [*_machine(inventory, verdict), *_parts(inventory)]


def _machine(inventory: Inventory, verdict: TierVerdict) -> Iterator[tuple[str, str]]:
    yield "Machine", inventory.hostname + (" (in a container)" if inventory.container else "")
    yield "System", inventory.operating_system
    yield "Platform", str(inventory.platform)
    yield "Tier", f"{verdict.tier}: {'; '.join(verdict.reasons)}"


def _parts(inventory: Inventory) -> Iterator[tuple[str, str]]:
    cpu, memory = inventory.cpu, inventory.memory
    architecture = f", {cpu.architecture}" if cpu.architecture else ""
    yield "CPU", f"{cpu.model or 'unknown'}, {_or(cpu.cores)} cores, {_or(cpu.threads)} threads{architecture}"
    limit = f", limited to {memory.limit_mb} MiB" if memory.limit_mb is not None else ""
    yield "RAM", f"{_or(memory.available_mb)} of {_or(memory.total_mb)} MiB available{limit}"
    if memory.swap_total_mb != 0:
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
    capability = f", compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
    place = f", {gpu.pci_address}" if gpu.pci_address else ""
    parts = (
        f"{part.name.removeprefix(gpu.name).strip()}: {_or(part.vram_free_mb)} of {_or(part.vram_total_mb)} MiB free"
        for part in gpu.mig_devices
    )
    return "\n".join((gpu.name + capability, _state(gpu), *parts, gpu.uuid + place))


def _state(gpu: Gpu) -> str:
    if not gpu.healthy:
        return f"{BROKEN}: {gpu.problem}"
    memory = f"{_or(gpu.vram_free_mb)} of {_or(gpu.vram_total_mb)} MiB free"
    measured = (
        "uses the machine's own memory" if gpu.unified_memory and gpu.vram_total_mb is None else memory,
        f"{gpu.utilization_ratio:.0%} busy" if gpu.utilization_ratio is not None else None,
        f"{gpu.temperature_celsius:.0f} °C" if gpu.temperature_celsius is not None else None,
        f"{gpu.power_watts:.0f} W" if gpu.power_watts is not None else None,
    )
    return ", ".join(fact for fact in measured if fact)


def _or(value: object) -> str:
    return "unknown" if value is None else str(value)
