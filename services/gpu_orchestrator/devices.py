"""What was measured, as devices of the ledger, and which of them may be given."""

from collections.abc import Iterable, Mapping, Sequence

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Gpu, Memory, MigDevice
from libs.common.errors import Malformed
from services.gpu_orchestrator.model import RAM, Device, Process

DIVIDED = "it is divided: reserve its parts by their UUIDs"
UNIFIED = "it uses the machine's own memory: reserve ram_mb with gpu_count 0"


def devices_of(
    states: Iterable[GpuState],
    memory: Memory,
    owners: Mapping[int, tuple[str, ...]],
    commands: Mapping[int, str],
    ram_mb: Mapping[int, tuple[tuple[str, ...], int]],
    before: Iterable[GpuState] = (),
) -> list[Device]:
    """`owners`: reservations by process. `ram_mb`: by a token of theirs, which reservations use how much RAM.
    `before`: what was measured the last time."""
    known = {state.gpu.uuid: state.gpu for state in before}
    found: list[Device] = []
    for state in states:
        ailment = ailment_of(state.gpu, known.get(state.gpu.uuid))
        found.append(_gpu(state, owners, commands, ailment))
        found.extend(_part(part, ailment) for part in state.gpu.mig_devices)
    return [*found, _ram(memory, ram_mb)]


def eligible(states: Iterable[GpuState]) -> list[str]:
    """In the order of indices: whole GPUs, and the parts of divided ones in their place."""
    by_index = sorted((state.gpu for state in states), key=lambda gpu: gpu.index)
    return [uuid for gpu in by_index for uuid in ([part.uuid for part in gpu.mig_devices] or [gpu.uuid])]


def indices(states: Iterable[GpuState]) -> dict[str, int]:
    """Of a part: that of the GPU it is a part of."""
    found: dict[str, int] = {}
    for state in states:
        found[state.gpu.uuid] = state.gpu.index
        found |= dict.fromkeys((part.uuid for part in state.gpu.mig_devices), state.gpu.index)
    return found


def named(
    states: Sequence[GpuState], gpu_indices: Sequence[int] | None, gpu_uuids: Sequence[str] | None
) -> tuple[str, ...] | None:
    """The UUIDs of GPUs that a request names; None when it names none. Raises `Malformed` for one that is not here."""
    if gpu_uuids is not None:
        known = indices(states)
        unknown = [uuid for uuid in gpu_uuids if uuid not in known]
        if unknown:
            raise Malformed(f"gpu_uuids: there is no {unknown[0]!r} here.", field="gpu_uuids", gpus=sorted(known))
        return tuple(gpu_uuids)
    if gpu_indices is None:
        return None
    by_index = {state.gpu.index: state.gpu.uuid for state in states}
    missing = [index for index in gpu_indices if index not in by_index]
    if missing:
        raise Malformed(f"gpu_indices: there is no GPU {missing[0]}.", field="gpu_indices", gpus=sorted(by_index))
    return tuple(by_index[index] for index in gpu_indices)


def _gpu(
    state: GpuState, owners: Mapping[int, tuple[str, ...]], commands: Mapping[int, str], ailment: str | None
) -> Device:
    gpu = state.gpu
    processes = None
    if state.processes is not None:
        processes = tuple(
            Process(
                pid=each.pid,
                used_mb=each.used_mb,
                owners=owners.get(each.pid, ()),
                command=commands.get(each.pid) or each.name,
            )
            for each in state.processes
        )
    return Device(
        uuid=gpu.uuid,
        total_mb=gpu.vram_total_mb,
        used_mb=gpu.vram_used_mb,
        driver_mb=gpu.vram_reserved_mb or 0,
        processes=processes,
        problem=ailment or _obstacle(gpu),
    )


def ailment_of(gpu: Gpu, before: Gpu | None) -> str | None:
    """What takes it out of reservation until it was seen well for a while."""
    if not gpu.healthy:
        return gpu.problem or "it is not well"
    if gpu.thermal_slowdown:
        return "it is so hot that its hardware slows it down"
    errors, known = gpu.ecc_uncorrected_errors, before.ecc_uncorrected_errors if before else None
    if errors is not None and known is not None and errors > known:
        return f"its memory had {errors - known} more uncorrectable errors"
    return None


def _obstacle(gpu: Gpu) -> str | None:
    if gpu.mig_devices:
        return DIVIDED
    return UNIFIED if gpu.unified_memory else None


def _part(part: MigDevice, ailment: str | None) -> Device:
    known = part.vram_total_mb is not None and part.vram_free_mb is not None
    used = part.vram_total_mb - part.vram_free_mb if known else None  # type: ignore[operator]  # both are known
    problem = None if ailment is None else f"of its GPU: {ailment}"
    return Device(uuid=part.uuid, total_mb=part.vram_total_mb, used_mb=used, problem=problem)


def _ram(memory: Memory, ram_mb: Mapping[int, tuple[tuple[str, ...], int]]) -> Device:
    processes = (Process(pid=token, used_mb=used, owners=names) for token, (names, used) in ram_mb.items())
    return Device(uuid=RAM, total_mb=memory.total_mb, used_mb=ram_used_mb(memory), processes=tuple(processes))


def ram_used_mb(memory: Memory) -> int | None:
    if memory.total_mb is None or memory.available_mb is None:
        return None
    return max(0, memory.total_mb - memory.available_mb)
