"""Machines as the planner knows them: from a request, or from what the registry and the ledgers tell."""

from collections.abc import Iterable, Mapping, Sequence

from libs.common.contracts.gpu_orchestrator import GpuStates
from libs.common.contracts.node_registry import Gpu as RegisteredGpu
from libs.common.contracts.node_registry import GpuLink, NetworkAddress, NodeView
from libs.common.contracts.vllm_orchestrator import PlanGpu, PlanNode
from libs.inference.planner.devices import Gpu, Node

MIB = 2**20
NVLINK = "NVLINK"
LOOPBACK = ("127.", "::1", "169.254.", "fe80:")


def from_request(nodes: Iterable[PlanNode]) -> tuple[Node, ...]:
    return tuple(
        Node(
            node_id=node.node_id,
            gpus=tuple(_asked(node.node_id, gpu, place) for place, gpu in enumerate(node.gpus)),
            linked=linked(node.links),
            ram=node.ram_free_bytes,
            threads=node.cpu_threads,
            address=node.address,
            interface=node.interface,
        )
        for node in nodes
    )


def _asked(node_id: str, gpu: PlanGpu, place: int) -> Gpu:
    return Gpu(
        uuid=gpu.uuid,
        node_id=node_id,
        total=gpu.total_bytes,
        free=gpu.total_bytes if gpu.free_bytes is None else gpu.free_bytes,
        name=gpu.name,
        capability=capability(gpu.compute_capability),
        index=place if gpu.index is None else gpu.index,
    )


def capability(text: str | None) -> tuple[int, int] | None:
    """From `9.0` to two numbers; None for what is not written so, as AMD's names are."""
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def linked(links: Iterable[GpuLink]) -> frozenset[frozenset[str]]:
    """The pairs that NVLink connects."""
    return frozenset(frozenset((link.first, link.second)) for link in links if link.nvlinks > 0 or link.path == NVLINK)


def from_registry(nodes: Iterable[NodeView], ledgers: Mapping[str, GpuStates]) -> tuple[Node, ...]:
    """What is free is what the ledger has left to give; it measures too. Without one, what the last heartbeat measured.

    Nobody waits for a heartbeat to see what was given back: a plan that is made for too little room stays as it is.
    """
    return tuple(_registered(node, ledgers.get(node.node_id)) for node in nodes)


def _registered(node: NodeView, ledger: GpuStates | None) -> Node:
    left = _left(ledger) if ledger else {}
    beats = {beat.uuid: beat.vram_free_mb for beat in node.gpus if beat.healthy}
    address, interface = _address(node.inventory.network)
    return Node(
        node_id=node.node_id,
        gpus=tuple(
            _found(node.node_id, gpu, [left.get(gpu.uuid), beats.get(gpu.uuid), gpu.vram_free_mb])
            for whole in node.inventory.gpus
            for gpu in _parts(whole)
            if gpu.healthy and gpu.vram_total_mb
        ),
        linked=linked(node.inventory.gpu_links),
        ram=(node.memory_available_mb or node.inventory.memory.available_mb or 0) * MIB,
        threads=node.inventory.cpu.threads or 0,
        address=address,
        interface=interface,
    )


def _left(ledger: GpuStates) -> dict[str, int | None]:
    """What the ledger has to give of every GPU, and of every part of one."""
    whole = {state.gpu.uuid: state.ledger.free_mb for state in ledger.gpus if state.ledger}
    return whole | {uuid: entry.free_mb for state in ledger.gpus for uuid, entry in state.parts.items()}


def _parts(gpu: RegisteredGpu) -> list[RegisteredGpu]:
    """Its MIG devices, each as a GPU of its own; itself where it has none."""
    changes = ("uuid", "name", "vram_total_mb", "vram_free_mb")
    return [gpu.model_copy(update={name: getattr(part, name) for name in changes}) for part in gpu.mig_devices] or [gpu]


def _found(node_id: str, gpu: RegisteredGpu, free: Sequence[int | None]) -> Gpu:
    """The first number of `free` that is known counts."""
    known = [next((each for each in free if each is not None), None), gpu.vram_total_mb]
    return Gpu(
        uuid=gpu.uuid,
        node_id=node_id,
        total=(gpu.vram_total_mb or 0) * MIB,
        free=min(each for each in known if each is not None) * MIB,
        name=gpu.name,
        capability=capability(gpu.compute_capability),
        index=gpu.index,
    )


def _address(network: Iterable[NetworkAddress]) -> tuple[str, str]:
    """The first address that other machines may reach, and its interface."""
    for found in network:
        if not found.address.startswith(LOOPBACK):
            return found.address.split("/")[0], found.interface
    return "", ""
