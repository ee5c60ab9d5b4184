"""About how fast a model answers: reading its weights is what a token costs when few requests run at once."""

from collections.abc import Sequence

from libs.inference.planner.devices import Gpu, bandwidth
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.matrices import Part
from libs.inference.planner.memory import StageNeed
from libs.inference.planner.parameters import parameters_by_part
from libs.inference.planner.seats import Seats

REACHED = 0.6
"""The part of a GPU's memory bandwidth that decoding reaches: 14.2 GiB of weights in 13.0 ms at 1,935 GB/s."""

USUAL_BANDWIDTH = 500 * 10**9
"""Taken for a GPU that is not known by name, so that GPUs of one name are at least compared rightly."""

LINKED_SECONDS, BUS_SECONDS, NETWORK_SECONDS = 10e-6, 40e-6, 600e-6
"""One sum over the ranks of a stage, by NVLink, by the PCI bus and by a plain network.

The last is measured: tensor parallelism over two nodes took 43.8 ms per token instead of 13.0 with 56 sums.
"""

SUMS_PER_LAYER = 2


def gpu_bandwidth(gpu: Gpu) -> int:
    return bandwidth(gpu.name) or USUAL_BANDWIDTH


def expert_share(facts: ModelFacts) -> float:
    """The part of all parameters that routed experts are."""
    parts = parameters_by_part(facts)
    return parts[Part.EXPERTS] / max(1, sum(parts.values()))


def read_share(facts: ModelFacts, share: float, requests: int) -> float:
    """The part of the weights that a step of so many requests reads: of the experts only those that are chosen."""
    if not facts.experts:
        return 1.0
    block = facts.experts[0]
    idle = (1 - min(1.0, block.chosen / block.count)) ** max(1, requests)
    return 1.0 - share * idle


def step_seconds(facts: ModelFacts, seats: Seats, needs: Sequence[StageNeed], requests: int, share: float) -> float:
    """One token of each of some requests at once, at the least; computing and reading the cache are not counted."""
    part = read_share(facts, share, requests)
    total = 0.0
    for stage, need in zip(seats.stages, needs, strict=True):
        total += need.weights * part / (REACHED * min(map(gpu_bandwidth, stage)))
    return total + SUMS_PER_LAYER * len(facts.layers) * _sum_seconds(seats)


def _sum_seconds(seats: Seats) -> float:
    if len(seats.stages[0]) == 1:
        return 0.0
    if any(len({gpu.node_id for gpu in stage}) > 1 for stage in seats.stages):
        return NETWORK_SECONDS
    return LINKED_SECONDS if seats.linked else BUS_SECONDS
