"""What is wanted of a plan, beside the options of the engine."""

from dataclasses import dataclass, replace
from enum import StrEnum

from libs.inference.planner.split import USUAL, Manner, Parallel


class Strategy(StrEnum):
    """How a model is spread over devices."""

    SINGLE_GPU = "SINGLE_GPU"
    TENSOR_PARALLEL = "TENSOR_PARALLEL"
    PIPELINE_PARALLEL = "PIPELINE_PARALLEL"
    HYBRID_TP_PP = "HYBRID_TP_PP"
    CPU = "CPU"


class Prefer(StrEnum):
    """What matters more than the order in which divisions are tried."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    FEWEST_GPUS = "fewest_gpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`concurrency` counts requests of the longest length at once, over all replicas.

    `tensor` and `pipeline` force the division, `replicas` their number. `tokens_per_second` is wanted of all replicas
    together. `manner` and `expert_parallel` are taken with every division.
    """

    concurrency: float = 1.0
    prefer: Prefer | None = None
    tensor: int | None = None
    pipeline: int | None = None
    replicas: int | None = None
    tokens_per_second: float | None = None
    manner: Manner = USUAL
    expert_parallel: bool = False

    @property
    def forced(self) -> bool:
        """Who names the division asks about that start: what is not said is then the engine's default."""
        return self.tensor is not None or self.pipeline is not None

    def allows(self, parallel: Parallel) -> bool:
        return self.tensor in (None, parallel.tensor) and self.pipeline in (None, parallel.pipeline)

    def shared(self, parallel: Parallel) -> Parallel:
        """A division in the manner that is wanted."""
        return replace(parallel, manner=self.manner, expert_parallel=self.expert_parallel)


def strategy_of(parallel: Parallel) -> Strategy:
    if parallel.gpus == 1:
        return Strategy.SINGLE_GPU
    if parallel.pipeline == 1:
        return Strategy.TENSOR_PARALLEL
    return Strategy.PIPELINE_PARALLEL if parallel.tensor == 1 else Strategy.HYBRID_TP_PP


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A division and where its ranks are: `per_node` stages on each of `nodes`, of ranks that are `linked` or not."""

    tensor: int
    per_node: int = 1
    nodes: int = 1
    linked: bool = False

    @property
    def parallel(self) -> Parallel:
        return Parallel(tensor=self.tensor, pipeline=self.per_node * self.nodes)


def preference(shape: Shape, prefer: Prefer | None) -> tuple[int, ...]:
    """Sorts shapes, the preferred first.

    One GPU; then tensor parallelism inside an NVLink set; then one node over the PCI bus, fewer GPUs before more and
    of as many up to two ranks per stage, because a single stream is answered sooner with two and a pipeline asks less
    of slow links than more; then several nodes, as few as it takes, with tensor parallelism inside them where NVLink
    connects them. Who wants throughput gets a pipeline before ranks over the bus, who wants latency the opposite.
    Source: vLLM's `docs/serving/parallelism_scaling.md` and measured starts over PCIe and Ethernet.
    """
    gpus, tensor = shape.parallel.gpus, shape.tensor
    alone = shape.parallel.pipeline == 1
    tier = 0 if gpus == 1 else 1 if alone and shape.linked else 2 if shape.nodes == 1 else 3
    if tier == 3 and prefer is not Prefer.FEWEST_GPUS:
        within = (-tensor, gpus) if shape.linked else (gpus, max(0, tensor - 2))
        return (tier, shape.nodes, not shape.linked, *within)
    size = (gpus, tier) if prefer is Prefer.FEWEST_GPUS else (tier, gpus)
    if prefer is Prefer.LATENCY:
        return (*size, not shape.linked, -tensor)
    if prefer is Prefer.THROUGHPUT and not shape.linked:
        return (*size, tensor)
    return (*size, max(0, tensor - 2), shape.per_node)
