"""A model on machines' processors: what it takes of their RAM, and how its ranks share their cores."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from libs.inference.planner.activations import activation_bytes
from libs.inference.planner.changes import Question
from libs.inference.planner.command import (
    Backend,
    Naming,
    NodeCommand,
    model_arguments,
    network_environment,
    shared_arguments,
    together_arguments,
)
from libs.inference.planner.devices import Node
from libs.inference.planner.kv_cache import KvLayout, kv_layout
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Options, options_of
from libs.inference.planner.rules import refusals
from libs.inference.planner.sentences import option_refusals
from libs.inference.planner.split import Parallel
from libs.inference.planner.weights import weight_bytes

PROGRAM_BYTES, RANK_BYTES = 5 * GIB // 4, 3 * GIB // 4
"""Python, PyTorch and vLLM before a model is loaded: its door and its scheduler together, and each rank.

Measured of vLLM 0.32 on Linux, by what each process has for itself: 0.91 GiB, and 0.40 to 0.55 GiB a rank.
"""

METHODS = frozenset({"awq", "gptq", "int8", "compressed-tensors"})
"""Quantisations that the CPU backend runs. Source: vLLM's installation page for CPUs."""

BLOCK_TOKENS = 128
BATCHED_TOKENS, SEQUENCES = 2048, 128
"""Source: `engine/arg_utils.py` (`get_batch_defaults`) and `platforms/cpu.py`."""

EAGER_STAGES = "With enforce_eager vLLM's CPU backend dies of the first request to a pipeline: leave it out."
"""The pass that makes what stages hand on is skipped then. Source: `v1/worker/cpu_worker.py` of 0.32
(`_should_warm_up_model`); seen there: `assert self.intermediate_tensors is not None`."""

NO_RAY = "vLLM's CPU backend does not run over Ray: leave distributed_executor_backend out, or ask for mp."
"""Source: `v1/executor/ray_utils.py` of 0.32 ("current platform cpu does not support ray"): `platforms/cpu.py` names no
`ray_device_key`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPlan:
    """One engine on the processors of one node or of several. `ram` is what it is to claim on each, in bytes."""

    ram: int
    parallel: Parallel
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    max_concurrency: float
    commands: tuple[NodeCommand, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What the rank with most takes, in bytes; the layout is that with the smallest cache, in requests."""

    weights: int
    activation: int
    gib: int
    layout: KvLayout

    def ram(self, ranks: int) -> int:
        """On a node with so many of them."""
        return PROGRAM_BYTES + ranks * (RANK_BYTES + self.weights + self.activation + self.gib * GIB)


def plan_on_cpu(question: Question, naming: Naming) -> tuple[CpuPlan | None, str]:
    """The machines with most free RAM, as few as hold it, and why none will do where none do.

    Stages go to machines of their own where there are enough: a processor answers as fast as its memory is read, and a
    second machine's is read beside the first one's. Ranks of a stage share the cores of one machine.
    """
    if naming.backend is Backend.RAY:
        return None, NO_RAY
    nodes = sorted((node for node in question.nodes if node.ram), key=lambda node: node.ram, reverse=True)
    if not nodes:
        return None, "There is no GPU that could be used, and no node says how much RAM is free."
    method = question.facts.quantisation.method if question.facts.quantisation else None
    if method is not None and method not in METHODS:
        return None, f"vLLM does not run the quantisation {method} on a CPU."
    options = _options(nodes[0], question)
    for refusal in option_refusals(question.facts, options):
        return None, refusal.message
    first = ""
    for parallel in _divisions(question, nodes):
        found = _divided(question, naming, options, question.goal.shared(parallel), nodes)
        if isinstance(found, CpuPlan):
            return found, ""
        first = first or found
    return None, first


def _divisions(question: Question, nodes: Sequence[Node]) -> Iterator[Parallel]:
    """Stages are not laid out where not even equal shares of the weights fit beside the least that a rank takes."""
    facts, goal = question.facts, question.goal
    if goal.forced:
        yield Parallel(tensor=goal.tensor or 1, pipeline=goal.pipeline or 1)
        return
    yield Parallel()
    if not facts.pipeline or question.asked.enforce_eager:
        return
    whole = weight_bytes(facts, Parallel())
    for count in range(2, min(len(nodes), len(facts.layers)) + 1):
        if PROGRAM_BYTES + RANK_BYTES + GIB + whole // count <= nodes[count - 1].ram:
            yield Parallel(pipeline=count)


def _options(node: Node, question: Question) -> Options:
    asked = replace(
        question.asked,
        max_num_batched_tokens=question.asked.max_num_batched_tokens or BATCHED_TOKENS,
        max_num_seqs=question.asked.max_num_seqs or SEQUENCES,
    )
    return replace(options_of(question.facts, asked, question.engine, node.ram), on_processor=True)


def _divided(
    question: Question, naming: Naming, options: Options, parallel: Parallel, nodes: Sequence[Node]
) -> CpuPlan | str:
    """On as many nodes as have the same number of stages each; a sentence where that is refused or does not fit."""
    for refusal in refusals(question.facts, parallel, question.engine):
        return refusal.message
    if parallel.pipeline > 1 and options.enforce_eager:
        return EAGER_STAGES
    need = _need(question, options, parallel)
    first = ""
    for count in range(min(len(nodes), parallel.pipeline), 0, -1):
        if parallel.pipeline % count == 0:
            short = _short(nodes[:count], parallel.gpus // count, need)
            if not short:
                return _planned(naming, options, parallel, nodes[:count], need)
            first = first or short
    return first


def _short(nodes: Sequence[Node], ranks: int, need: _Need) -> str:
    """What the smallest of the nodes, which is the last one, lacks for so many ranks; empty where it lacks nothing."""
    smallest = nodes[-1]
    idle = next((node for node in nodes if node.threads and node.threads < ranks), None)
    if idle is not None:
        return f"{ranks} ranks want a core each, and {idle.node_id} has {idle.threads}."
    if need.ram(ranks) <= smallest.ram:
        return ""
    return (
        f"The model needs {need.ram(ranks) / GIB:.2f} GiB of RAM (weights {ranks * need.weights / GIB:.2f}, cache "
        f"{ranks * need.gib:.2f}), and {smallest.node_id} has {smallest.ram / GIB:.2f} GiB free."
    )


def _planned(naming: Naming, options: Options, parallel: Parallel, nodes: Sequence[Node], need: _Need) -> CpuPlan:
    ranks = parallel.gpus // len(nodes)
    demand = options.demand(parallel)
    blocks = need.layout.blocks_in(need.gib * GIB)
    return CpuPlan(
        ram=need.ram(ranks),
        parallel=parallel,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_tokens=need.layout.tokens(blocks, demand),
        max_concurrency=need.layout.concurrency(blocks, demand),
        commands=_commands(naming, options, parallel, nodes, need),
        reasons=tuple(_reasons(nodes, ranks, need)),
    )


def _need(question: Question, options: Options, parallel: Parallel) -> _Need:
    facts, demand = question.facts, options.demand(parallel)
    layouts = [
        kv_layout(facts, parallel, stage=stage, cache_type=options.kv_cache_dtype, block_tokens=BLOCK_TOKENS)
        for stage in range(parallel.pipeline)
    ]
    largest = max(layouts, key=lambda layout: layout.request_bytes(demand))
    wanted = math.ceil(question.goal.concurrency * largest.request_bytes(demand)) + largest.block_bytes
    return _Need(
        weights=max(weight_bytes(facts, parallel, stage) for stage in range(parallel.pipeline)),
        activation=max(activation_bytes(facts, parallel, options, stage) for stage in range(parallel.pipeline)),
        gib=max(1, math.ceil(wanted / GIB)),
        layout=largest,
    )


def _commands(
    naming: Naming, options: Options, parallel: Parallel, nodes: Sequence[Node], need: _Need
) -> tuple[NodeCommand, ...]:
    arguments = _arguments(naming, options, parallel)
    return tuple(
        NodeCommand(
            node_id=node.node_id,
            arguments=(*arguments, *together_arguments(nodes, rank)),
            environment=_environment(node, parallel.gpus // len(nodes), need)
            | (network_environment(node) if len(nodes) > 1 else {}),
        )
        for rank, node in enumerate(nodes)
    )


def _arguments(naming: Naming, options: Options, parallel: Parallel) -> list[str]:
    found = [*model_arguments(naming), "--max-model-len", str(options.max_model_len)]
    found += ["--max-num-seqs", str(options.max_num_seqs)]
    found += ["--max-num-batched-tokens", str(options.max_num_batched_tokens)]
    found += ["--tensor-parallel-size", str(parallel.tensor)] if parallel.tensor > 1 else []
    found += ["--pipeline-parallel-size", str(parallel.pipeline)] if parallel.pipeline > 1 else []
    found += shared_arguments(parallel)
    found += ["--dtype", naming.dtype] if naming.dtype else []
    found += ["--kv-cache-dtype", options.kv_cache_dtype] if options.kv_cache_dtype != "auto" else []
    return found + (["--enforce-eager"] if options.enforce_eager else [])


def _environment(node: Node, ranks: int, need: _Need) -> dict[str, str]:
    """Each rank has a cache of its own, and cores of its own.

    Source: `utils/ompmultiprocessing.py`: without a list vLLM wants a memory node for each rank.
    """
    found = {"VLLM_CPU_KVCACHE_SPACE": str(need.gib)}
    if node.threads:
        ends = [node.threads * rank // ranks for rank in range(ranks + 1)]
        shares = (_cores(first, after - 1) for first, after in itertools.pairwise(ends))
        found["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(shares)
    return found


def _cores(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _reasons(nodes: Sequence[Node], ranks: int, need: _Need) -> Iterator[str]:
    names = ", ".join(node.node_id for node in nodes)
    who = f"{names} serves it on its processor" if len(nodes) == 1 else f"{names} serve it on their processors"
    yield f"{who}: {ranks * need.gib} GiB of RAM {'are' if len(nodes) == 1 else 'of each are'} its cache."
    if ranks > 1:
        yield f"{ranks} ranks share the cores of {'the machine' if len(nodes) == 1 else 'each machine'}."
