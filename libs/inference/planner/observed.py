"""From a start that was logged to one that corrects the next: what was predicted of it, beside what it took."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from libs.inference.planner.calibration import MeasuredStart, Terms
from libs.inference.planner.devices import Gpu
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.memory import budget_of, estimated_terms, kind_of
from libs.inference.planner.options import Asked, options_of
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.split import Manner, Parallel
from libs.inference.planner.versions import Engine
from libs.inference.vllm_log import LoggedStart
from libs.inference.vllm_metrics import ToldCache


def values_of(arguments: Sequence[str]) -> Mapping[str, str]:
    """From the options of a command line to their values; of one without a value an empty one."""
    found: dict[str, str] = {}
    for place, word in enumerate(arguments):
        if word.startswith("--"):
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            found[word] = "" if following.startswith("--") else following
    return found


def measured_start(
    facts: ModelFacts,
    arguments: Sequence[str],
    engine: Engine,
    gpus: Sequence[Gpu],
    logged: LoggedStart,
    told: ToldCache | None = None,
) -> MeasuredStart | None:
    """None for a pipeline, whose logs do not say which stage is whose, and where nothing estimated was told.

    Newer engines tell what is left for the cache and not the peak of a step: then the peak is what the weights, the
    cache, the graphs and what is kept beside PyTorch leave of the budget. Where the log does not tell of the cache,
    its metrics do: the blocks, whose bytes are computed as the weights then are.
    """
    given = values_of(arguments)
    parallel = Parallel(
        tensor=int(given.get("--tensor-parallel-size", 1)),
        expert_parallel="--enable-expert-parallel" in given,
        manner=_manner(given),
    )
    if int(given.get("--pipeline-parallel-size", 1)) > 1 or not gpus:
        return None
    asked = Asked(
        gpu_memory_utilization=_number(given, "--gpu-memory-utilization") or (told.utilization if told else None),
        max_model_len=_count(given, "--max-model-len"),
        max_num_batched_tokens=_count(given, "--max-num-batched-tokens"),
        max_num_seqs=_count(given, "--max-num-seqs"),
        kv_cache_dtype=given.get("--kv-cache-dtype", "auto"),
        enforce_eager="--enforce-eager" in given,
    )
    total = min(gpu.total for gpu in gpus)
    options = options_of(facts, asked, engine, total, ampere=any("a100" in gpu.name.lower() for gpu in gpus))
    sizes = Sizes(facts)
    predicted = estimated_terms(sizes, parallel, options)
    budget = budget_of(total, options.gpu_memory_utilization)
    seen = logged
    if told is not None and logged.available is None and logged.activation is None:
        layers = range(len(facts.layers))
        seen = replace(
            logged,
            available=told.blocks * sizes.layout(parallel, options.kv_cache_dtype, layers).block_bytes,
            weights=sizes.weights(parallel, 0, layers) if logged.weights is None else logged.weights,
            graphs=predicted.graphs if logged.graphs is None else logged.graphs,
        )
    measured = Terms(
        activation=logged.activation if logged.activation is not None else _left(budget, predicted, seen, engine),
        graphs=logged.graphs,
        non_torch=logged.non_torch,
    )
    if measured == Terms():
        return None
    return MeasuredStart(
        kind=kind_of(facts, parallel, engine.version, gpus[0].name), predicted=predicted, measured=measured
    )


def _manner(given: Mapping[str, str]) -> Manner:
    return Manner(
        context=int(given.get("--decode-context-parallel-size", 1)),
        balanced="--enable-eplb" in given,
        redundant=json.loads(given.get("--eplb-config", "{}")).get("num_redundant_experts", 0),
        whole_encoder=given.get("--mm-encoder-tp-mode") == "data",
    )


def _left(budget: int, predicted: Terms, logged: LoggedStart, engine: Engine) -> int | None:
    if logged.weights is None or logged.available is None:
        return None
    graphs = (logged.graphs or 0) if engine.counts_graphs else 0
    beside = predicted.non_torch if logged.non_torch is None else logged.non_torch
    return max(0, budget - logged.weights - logged.available - graphs - (beside or 0))


def _number(given: Mapping[str, str], name: str) -> float | None:
    return float(given[name]) if name in given else None


def _count(given: Mapping[str, str], name: str) -> int | None:
    return int(given[name]) if name in given else None
