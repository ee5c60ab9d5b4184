"""How the GPUs of a machine are connected, as a matrix."""

from collections.abc import Sequence

from libs.common.contracts.node_registry import Gpu, GpuLink
from services.resource_detector.model import Topology


def matrix(gpus: Sequence[Gpu], links: Sequence[GpuLink]) -> Topology:
    """Rows and columns in the order of `gpus`. What no link tells is null, and so is the way of a GPU to itself."""
    pairs = {(link.first, link.second): link for link in links}
    pairs |= {(link.second, link.first): link for link in links}
    names = tuple(gpu.uuid for gpu in gpus)
    table = [[pairs.get((one, other)) for other in names] for one in names]
    return Topology(
        gpus=names,
        paths=tuple(tuple(link.path if link else None for link in row) for row in table),
        nvlinks=tuple(tuple(link.nvlinks if link else None for link in row) for row in table),
        peer_access=tuple(tuple(link.peer_access if link else None for link in row) for row in table),
    )
