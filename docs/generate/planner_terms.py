"""What the planner says of each published start, term by term; None where a row cannot decide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from docs.generate.measured_starts import MeasuredStart, gpu_name
from libs.common.errors import MeshError
from libs.inference.planner.calibration import MeasuredStart as Started
from libs.inference.planner.calibration import Terms, corrections_for
from libs.inference.planner.kv_cache import kv_layout
from libs.inference.planner.memory import (
    GIB,
    GpuMemory,
    Verdict,
    estimated_terms,
    gpu_memory,
    kind_of,
    stage_need,
    start,
    whole,
)
from libs.inference.planner.rules import Refusal, refusals
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.weights import weight_bytes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A predicted value beside the measured one."""

    row: MeasuredStart
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, above zero where too much was predicted."""
        return self.predicted / self.measured - 1


def weights(row: MeasuredStart) -> Pair | None:
    """Stages are not scored: logs do not say of which stage they are."""
    measured, parallel = row.number("weights_gib_per_gpu"), row.parallel
    if row.facts is None or parallel is None or measured is None or parallel.pipeline > 1 or row.drafted:
        return None
    if not row.whose_files:
        return None
    return Pair(row=row, predicted=weight_bytes(row.facts, parallel) / GIB, measured=measured)


def tokens_of_bytes(row: MeasuredStart) -> Pair | None:
    """Tokens that the logged bytes of cache hold."""
    available = row.number("available_kv_gib_per_gpu")
    return None if available is None else _tokens(row, int(available * GIB))


def tokens_of_budget(row: MeasuredStart) -> Pair | None:
    """Tokens that the whole card holds, all terms predicted."""
    memory = _memory(row)
    return None if memory is None or row.engine is None else _tokens(row, memory.kv_cache)


def _tokens(row: MeasuredStart, size: int) -> Pair | None:
    measured, parallel = row.number("kv_tokens_reported"), row.parallel
    if row.facts is None or parallel is None or not measured or row.drafted or row.engine is None:
        return None
    options = row.options(row.total_bytes or 80 * GIB)
    layout = kv_layout(row.facts, parallel, cache_type=options.kv_cache_dtype)
    if layout.is_hybrid and not (row.cells["max_num_batched_tokens"] and row.cells["max_model_len"]):
        return None  # a window also holds what is under way, and the row does not say how much that is
    blocks = layout.blocks_in(size)
    demanded = row.engine.prints_demanded_tokens
    tokens = layout.tokens(blocks, options.demand(parallel)) if demanded else layout.tokens_before_0_21(blocks)
    return Pair(row=row, predicted=tokens, measured=measured)


def _memory(row: MeasuredStart) -> GpuMemory | None:
    parallel, total = row.parallel, row.total_bytes
    if row.facts is None or parallel is None or total is None or row.engine is None or row.drafted:
        return None
    if row.unpublished or not row.whose_files:
        return None
    return _first_stage(row, total)


def _first_stage(row: MeasuredStart, total: int) -> GpuMemory:
    assert row.facts is not None
    assert row.parallel is not None
    options = row.options(total)
    return gpu_memory(stage_need(Sizes(row.facts), row.parallel, options), options, whole(total))


def _term(column: str, predicted: Callable[[GpuMemory], int]) -> Callable[[MeasuredStart], Pair | None]:
    def pair(row: MeasuredStart) -> Pair | None:
        memory, measured = _memory(row), row.number(column)
        if memory is None or measured is None or measured <= 0:
            return None
        return Pair(row=row, predicted=predicted(memory) / GIB, measured=measured)

    return pair


def graphs(row: MeasuredStart) -> Pair | None:
    """Graphs do not depend on the size of the card, so rows without one are scored too."""
    measured, parallel = row.number("cudagraph_gib"), row.parallel
    if row.facts is None or parallel is None or row.engine is None or not measured or measured < 0:
        return None
    return Pair(row=row, predicted=_first_stage(row, row.total_bytes or 80 * GIB).graphs / GIB, measured=measured)


ESTIMATED: Mapping[str, tuple[str, str]] = {
    "activation peak (GiB)": ("activation_peak_gib", "activation"),
    "CUDA graphs (GiB)": ("cudagraph_gib", "graphs"),
    "beside PyTorch (GiB)": ("non_torch_gib", "non_torch"),
}
"""The terms that calibration corrects: a row's column, and the term's name."""


def started(row: MeasuredStart) -> Started | None:
    """A row as calibration takes it; None where it tells none of the estimated terms."""
    if row.facts is None or row.parallel is None or row.engine is None or row.drafted or row.unpublished:
        return None
    sizes = {name: row.number(column) for column, name in ESTIMATED.values()}
    told = {name: int(value * GIB) for name, value in sizes.items() if value is not None and value > 0}
    options = row.options(row.total_bytes or 80 * GIB)
    return Started(
        kind=kind_of(row.facts, row.parallel, row.engine.version, gpu_name(row.cells)),
        predicted=estimated_terms(Sizes(row.facts), row.parallel, options),
        measured=Terms(**told),
    )


def corrected(row: MeasuredStart, term: str, known: Mapping[str, Started]) -> Pair | None:
    """An estimated term as the starts of all other rows correct it; `known` are all of them by their row."""
    column, name = ESTIMATED[term]
    own, measured = known.get(row.id), row.number(column)
    if own is None or not measured or measured < 0:
        return None
    found = corrections_for(own.kind, [other for place, other in known.items() if place != row.id])
    predicted = {
        "activation": found.activation * (own.predicted.activation or 0),
        "graphs": found.graphs * (own.predicted.graphs or 0),
        "non_torch": found.non_torch + (own.predicted.non_torch or 0),
    }[name]
    return Pair(row=row, predicted=predicted / GIB, measured=measured)


FITTED = frozenset(
    {
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3-8B",
        "openai/gpt-oss-20b",
        "google/gemma-3-1b-it",
        "Qwen2.5-0.5B-Instruct",
        "Qwen2.5-7B-Instruct (14.29 GiB)",
    }
)
"""Models whose starts were looked at when the estimated terms were chosen. All others are kept apart."""

TERMS: Mapping[str, Callable[[MeasuredStart], Pair | None]] = {
    "weights per GPU (GiB)": weights,
    "tokens, given the bytes of cache": tokens_of_bytes,
    "tokens, given the card": tokens_of_budget,
    "cache available (GiB)": _term("available_kv_gib_per_gpu", lambda memory: memory.kv_cache),
    "activation peak (GiB)": _term("activation_peak_gib", lambda memory: memory.activation),
    "CUDA graphs (GiB)": graphs,
    "beside PyTorch (GiB)": _term("non_torch_gib", lambda memory: memory.non_torch),
}

REFUSED = ("divisible", "%128", "% 128", "breaks per-block", "must divisible", "fails in model init", "FusedMoE init")


def is_refusal(row: MeasuredStart) -> bool:
    """The start failed for how it was divided, not for want of memory."""
    text = row.cells["error"] + row.cells["note"]
    return row.cells["outcome"] == "fail" and any(word in text for word in REFUSED)


def refused(row: MeasuredStart) -> list[Refusal] | None:
    """What the planner refuses of this row's division; None where the row cannot decide."""
    if row.facts is None or row.parallel is None:
        return None
    return refusals(row.facts, row.parallel)


def verdict(row: MeasuredStart) -> Verdict | None:
    """What the planner says of the start as a whole; None where the row cannot decide."""
    parallel, total = row.parallel, row.total_bytes
    if row.facts is None or parallel is None or total is None or row.engine is None or row.drafted or is_refusal(row):
        return None
    try:
        return start(Sizes(row.facts), parallel, row.options(total), [whole(total)] * parallel.pipeline).verdict
    except MeshError:
        return None


def arithmetic(row: MeasuredStart) -> str:
    """How a verdict on a start came about, in GiB of the first stage. The row must decide it."""
    assert row.facts is not None
    assert row.parallel is not None
    assert row.total_bytes is not None
    options = row.options(row.total_bytes)
    need = stage_need(Sizes(row.facts), row.parallel, options)
    memory = gpu_memory(need, options, whole(row.total_bytes))
    wanted = need.layout.request_blocks(options.demand(row.parallel)) * need.layout.block_bytes
    terms = [memory.budget, memory.weights, memory.non_torch, memory.activation]
    if options.engine.counts_graphs:
        terms.append(memory.graphs)
    left = " - ".join(f"{term / GIB:.2f}" for term in terms)
    return f"{left} = {memory.kv_cache / GIB:.2f}, and a request takes {wanted / GIB:.2f}"
