"""What becomes of a GPU's memory when an engine starts, term by term, and whether it starts at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from libs.inference.planner.calibration import NONE, Kind, Terms
from libs.inference.planner.drafts import drafting_layers
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.kv_cache import Demand, KvLayout
from libs.inference.planner.options import Options
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.split import Parallel, stage_ranges

GIB = 2**30
ALONE_BYTES = int(0.15 * GIB)
TOGETHER_BYTES = int(0.6 * GIB)
"""What CUDA libraries and NCCL keep beside PyTorch, without and with other GPUs. Source: llm-d's capacity planner."""

CONTEXT_BYTES = int(0.2 * GIB)
"""A CUDA context with its kernels, where it counts. The same engine logs 0.35 GiB before 0.7 and 0.05 to 0.15 after."""

GRAPH_BYTES = 2**18
"""Per layer and captured size. Start-up logs of 24 to 28 layers at 67 sizes give 0.243 to 0.259 MiB."""

MARGIN_ALONE, MARGIN_TOGETHER = 0.01, 0.03
"""The part of the budget that a start may need beyond these terms. Of several GPUs the first needs more than others."""


class Verdict(StrEnum):
    """What becomes of a start."""

    FITS = "fits"
    BUSY = "free_memory_below_utilization"
    WEIGHTS = "weights_too_large"
    NO_CACHE = "no_memory_for_the_cache"
    TOO_LONG = "cache_too_small_for_the_length"
    FEW_STATES = "too_few_blocks_for_the_states"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The memory of a GPU and what of it is free, in bytes. Other programs hold the rest and keep it."""

    total: int
    free: int


def whole(total_bytes: int) -> Card:
    """A GPU that nobody else uses."""
    return Card(total=total_bytes, free=total_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNeed:
    """What each GPU of a stage needs, in bytes, and how its cache is laid out; whatever GPU it is."""

    weights: int
    non_torch: int
    activation: int
    graphs: int
    layout: KvLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """The memory of each GPU of one stage, in bytes. `kv_cache` is what remains of the budget, also below zero."""

    total: int
    free: int
    budget: int
    weights: int
    non_torch: int
    activation: int
    graphs: int
    kv_cache: int


def stage_need(sizes: Sizes, parallel: Parallel, options: Options, stage: int = 0) -> StageNeed:
    """The terms of one stage. Raises `Malformed` or `Unsupported` where the cache cannot be laid out."""
    held = stage_ranges(len(sizes.facts.layers), parallel)[stage]
    return range_need(sizes, parallel, options, stage, held)


def range_need(sizes: Sizes, parallel: Parallel, options: Options, stage: int, held: range) -> StageNeed:
    """The same for a stage that would hold these layers."""
    return StageNeed(
        weights=sizes.weights(parallel, stage, held),
        non_torch=non_torch_bytes(parallel, options),
        activation=int(options.corrections.activation * sizes.activation(parallel, options, stage)),
        graphs=int(options.corrections.graphs * graph_bytes(sizes.facts, options, captured_layers(sizes.facts, held))),
        layout=sizes.layout(parallel, options.kv_cache_dtype, held),
    )


def non_torch_bytes(parallel: Parallel, options: Options) -> int:
    """What is kept beside PyTorch's own memory."""
    kept = TOGETHER_BYTES if parallel.gpus > 1 else ALONE_BYTES
    context = CONTEXT_BYTES if options.engine.counts_context else 0
    return max(0, kept + context + options.corrections.non_torch)


def estimated_terms(sizes: Sizes, parallel: Parallel, options: Options, stage: int = 0) -> Terms:
    """The terms that a measured start may correct, without any correction."""
    plain = replace(options, corrections=NONE)
    layers = captured_layers(sizes.facts, stage_ranges(len(sizes.facts.layers), parallel)[stage])
    return Terms(
        activation=sizes.activation(parallel, plain, stage),
        graphs=graph_bytes(sizes.facts, plain, layers),
        non_torch=non_torch_bytes(parallel, plain),
    )


def kind_of(facts: ModelFacts, parallel: Parallel, version: tuple[int, int], gpu: str) -> Kind:
    """Of what kind a start on such a GPU is."""
    return Kind(
        architecture=facts.architecture,
        quantisation=facts.quantisation.method if facts.quantisation else "",
        version=version,
        gpu=gpu,
        together=parallel.gpus > 1,
    )


def budget_of(total_bytes: int, utilization: float) -> int:
    """What an engine may take of a GPU. Source: `v1/worker/utils.py` (`request_memory`)."""
    return math.ceil(total_bytes * utilization)


def gpu_memory(need: StageNeed, options: Options, card: Card) -> GpuMemory:
    """What becomes of one GPU. Source: `v1/worker/gpu_worker.py` (`determine_available_memory`)."""
    budget = budget_of(card.total, options.gpu_memory_utilization)
    counted = need.graphs if options.engine.counts_graphs else 0
    return GpuMemory(
        total=card.total,
        free=card.free,
        budget=budget,
        weights=need.weights,
        non_torch=need.non_torch,
        activation=need.activation,
        graphs=need.graphs,
        kv_cache=budget - need.weights - need.non_torch - need.activation - counted,
    )


def captured_layers(facts: ModelFacts, held: range) -> int:
    """Those of a stage that holds some layers: the last one captures what guesses ahead, too."""
    return len(held) + (len(drafting_layers(facts)) if held.stop == len(facts.layers) else 0)


def graph_bytes(facts: ModelFacts, options: Options, layers: int | None = None) -> int:
    """CUDA graphs of the layers of a stage. Source: `v1/worker/gpu_model_runner.py` (`capture_model`)."""
    if options.enforce_eager:
        return 0
    captured = captured_layers(facts, range(len(facts.layers))) if layers is None else layers
    return GRAPH_BYTES * captured * options.engine.graph_sizes(options.max_num_seqs, 1 + options.draft_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a start goes: the memory of each stage, and the cache that the tightest stage leaves to all.

    `safe_concurrency` counts only the cache beyond the margin.
    """

    verdict: Verdict
    stages: tuple[GpuMemory, ...]
    needs: tuple[StageNeed, ...]
    kv_cache_tokens: int
    max_concurrency: float
    safe_concurrency: float


def margin_of(parallel: Parallel) -> float:
    return MARGIN_TOGETHER if parallel.gpus > 1 else MARGIN_ALONE


def start(sizes: Sizes, parallel: Parallel, options: Options, cards: Sequence[Card]) -> Start:
    """Whether an engine starts, and with how much cache. `cards` has the tightest GPU of each stage.

    `FITS` is only said with a margin of the budget to spare: an engine that dies at start costs more than a GPU that
    is not quite full. Raises `Malformed` or `Unsupported` where the cache cannot be laid out.
    """
    needs = tuple(stage_need(sizes, parallel, options, stage) for stage in range(parallel.pipeline))
    stages = tuple(gpu_memory(need, options, card) for need, card in zip(needs, cards, strict=True))
    demand, margin = options.demand(parallel), margin_of(parallel)
    pairs = [(need.layout, memory) for need, memory in zip(needs, stages, strict=True) if need.layout.block_bytes]
    blocks = min((layout.blocks_in(memory.kv_cache) for layout, memory in pairs), default=0)
    safe = min((safe_blocks(layout, memory, margin) for layout, memory in pairs), default=0)
    widest = max((layout for layout, _ in pairs), key=lambda layout: layout.request_blocks(demand), default=None)
    return Start(
        verdict=_verdict(stages, options, safe, widest, demand),
        stages=stages,
        needs=needs,
        kv_cache_tokens=widest.tokens(blocks, demand) if widest else 0,
        max_concurrency=widest.concurrency(blocks, demand) if widest else 0.0,
        safe_concurrency=widest.concurrency(safe - 1, demand) if widest else 0.0,
    )


def safe_blocks(layout: KvLayout, memory: GpuMemory, margin: float) -> int:
    return layout.blocks_in(memory.kv_cache - int(margin * memory.budget))


def _verdict(
    stages: tuple[GpuMemory, ...], options: Options, blocks: int, layout: KvLayout | None, demand: Demand
) -> Verdict:
    """One block is vLLM's own (the null block), so more than what a request needs must be there."""
    if any(memory.budget > memory.free for memory in stages):
        return Verdict.BUSY
    if any(memory.weights + memory.non_torch > memory.free for memory in stages):
        return Verdict.WEIGHTS
    if layout is None or blocks <= 0 or any(_full(memory, options) for memory in stages):
        return Verdict.NO_CACHE
    if blocks <= layout.request_blocks(demand):
        return Verdict.TOO_LONG
    return Verdict.FEW_STATES if _lacks_states(layout, options, blocks) else Verdict.FITS


def _lacks_states(layout: KvLayout, options: Options, blocks: int) -> bool:
    """Graphs are captured for as many sequences as there may be, and each keeps a block with its state.

    Source: `config/compilation.py` (`adjust_cudagraph_sizes_for_mamba_cache`).
    """
    keeps_states = any(group.state for group in layout.groups)
    return keeps_states and not options.enforce_eager and blocks < options.max_num_seqs


def _full(memory: GpuMemory, options: Options) -> bool:
    """Graphs that are not taken from the budget come on top of it, while no forward pass is under way."""
    held = memory.budget - memory.activation + memory.graphs
    return not options.engine.counts_graphs and held > memory.free
