"""Machines that tests plan on, and generated ones."""

from itertools import combinations

from hypothesis import strategies as st

from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.memory import GIB


def node(
    name: str,
    *gibs: float,
    linked: bool = False,
    used: float = 0.0,
    gpu: str = "",
    capability: tuple[int, int] | None = None,
) -> Node:
    """A node with GPUs of these sizes, of which others use some GiB each."""
    gpus = tuple(
        Gpu(
            uuid=f"{name}-{index}",
            node_id=name,
            total=int(gib * GIB),
            free=max(0, int((gib - used) * GIB)),
            name=gpu,
            capability=capability,
            index=index,
        )
        for index, gib in enumerate(gibs)
    )
    return Node(node_id=name, gpus=gpus, linked=all_linked(gpus) if linked else frozenset())


def all_linked(gpus: tuple[Gpu, ...]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset((one.uuid, other.uuid)) for one, other in combinations(gpus, 2))


@st.composite
def nodes(draw: st.DrawFn, most_nodes: int = 3, most_gpus: int = 4) -> list[Node]:
    """Mixed machines, some GPUs used by others, some connected."""
    found = []
    for place in range(draw(st.integers(1, most_nodes))):
        sizes = draw(st.lists(st.tuples(st.integers(6, 96), st.floats(0, 1)), min_size=1, max_size=most_gpus))
        gpus = tuple(
            Gpu(
                uuid=f"n{place}-{index}",
                node_id=f"n{place}",
                total=gib * GIB,
                free=int(gib * GIB * part),
                name=draw(st.sampled_from(("", "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"))),
                index=index,
            )
            for index, (gib, part) in enumerate(sizes)
        )
        linked = all_linked(gpus) if draw(st.booleans()) else frozenset()
        found.append(Node(node_id=f"n{place}", gpus=gpus, linked=linked))
    return found
