"""What becomes of a GPU's memory when an engine starts, term by term, and whether it starts at all."""

import math
from dataclasses import dataclass
from enum import StrEnum

from libs.inference.planner.activations import activation_bytes
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.kv_cache import kv_layout
from libs.inference.planner.options import Options
from libs.inference.planner.split import Parallel
from libs.inference.planner.weights import weight_bytes

GIB = 2**30
ALONE_BYTES = int(0.15 * GIB)
TOGETHER_BYTES = int(0.6 * GIB)
"""What CUDA libraries and NCCL keep beside PyTorch, without and with other GPUs. Source: llm-d's capacity planner."""

GRAPH_BYTES = 2**18
"""Per layer and captured size. Start-up logs of 24 to 28 layers at 67 sizes give 0.243 to 0.259 MiB."""

MARGIN_ALONE, MARGIN_TOGETHER = 0.01, 0.03
"""The part of the budget that a start may need beyond these terms. Of several GPUs the first needs more than others."""


class Verdict(StrEnum):
    """What becomes of a start."""

    FITS = "fits"
    WEIGHTS = "weights_too_large"
    NO_CACHE = "no_memory_for_the_cache"
    TOO_LONG = "cache_too_small_for_the_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """The memory of each GPU of one stage, in bytes. `kv_cache` is what remains of the budget, also below zero."""

    total: int
    budget: int
    weights: int
    non_torch: int
    activation: int
    graphs: int
    kv_cache: int


def gpu_memory(facts: ModelFacts, parallel: Parallel, options: Options, total_bytes: int, stage: int = 0) -> GpuMemory:
    """The terms of one stage.

    Source: `v1/worker/gpu_worker.py` (`determine_available_memory`), `v1/worker/utils.py` (`request_memory`).
    """
    budget = math.ceil(total_bytes * options.gpu_memory_utilization)
    weights = weight_bytes(facts, parallel, stage)
    non_torch = TOGETHER_BYTES if parallel.gpus > 1 else ALONE_BYTES
    activation = activation_bytes(facts, parallel, options, stage)
    graphs = graph_bytes(facts, parallel, options)
    remaining = budget - weights - non_torch - activation - (graphs if options.engine.counts_graphs else 0)
    return GpuMemory(
        total=total_bytes,
        budget=budget,
        weights=weights,
        non_torch=non_torch,
        activation=activation,
        graphs=graphs,
        kv_cache=remaining,
    )


def graph_bytes(facts: ModelFacts, parallel: Parallel, options: Options) -> int:
    """CUDA graphs of the layers of a stage. Source: `v1/worker/gpu_model_runner.py` (`capture_model`)."""
    if options.enforce_eager:
        return 0
    layers = -(-len(facts.layers) // parallel.pipeline)
    return GRAPH_BYTES * layers * options.engine.graph_sizes(options.max_num_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a start goes: the memory of each stage, and the cache that the tightest stage leaves to all."""

    verdict: Verdict
    stages: tuple[GpuMemory, ...]
    kv_cache_tokens: int
    max_concurrency: float


def start(facts: ModelFacts, parallel: Parallel, options: Options, total_bytes: int) -> Start:
    """Whether an engine starts on equal GPUs that are otherwise free, and with how much cache.

    `FITS` is only said with a margin of the budget to spare: an engine that dies at start costs more than a GPU that
    is not quite full.
    """
    stages = tuple(gpu_memory(facts, parallel, options, total_bytes, stage) for stage in range(parallel.pipeline))
    demand = options.demand(parallel)
    layouts = [
        kv_layout(facts, parallel, stage=stage, cache_type=options.kv_cache_dtype) for stage in range(len(stages))
    ]
    pairs = list(zip(layouts, stages, strict=True))
    blocks = min(layout.blocks_in(memory.kv_cache) for layout, memory in pairs)
    margin = MARGIN_TOGETHER if parallel.gpus > 1 else MARGIN_ALONE
    safe = min(layout.blocks_in(memory.kv_cache - int(margin * memory.budget)) for layout, memory in pairs)
    needed = max(layout.request_blocks(demand) for layout in layouts)
    return Start(
        verdict=_verdict(stages, options, safe, needed),
        stages=stages,
        kv_cache_tokens=layouts[0].tokens(blocks, demand),
        max_concurrency=layouts[0].concurrency(blocks, demand),
    )


def _verdict(stages: tuple[GpuMemory, ...], options: Options, blocks: int, needed: int) -> Verdict:
    """One block is vLLM's own (the null block), so more than what a request needs must be there."""
    if any(memory.weights + memory.non_torch > memory.total for memory in stages):
        return Verdict.WEIGHTS
    if blocks <= 0 or any(_full(memory, options) for memory in stages):
        return Verdict.NO_CACHE
    return Verdict.FITS if blocks > needed else Verdict.TOO_LONG


def _full(memory: GpuMemory, options: Options) -> bool:
    """Graphs that are not taken from the budget come on top of it, while no forward pass is under way."""
    held = memory.budget - memory.activation + memory.graphs
    return not options.engine.counts_graphs and held > memory.total
