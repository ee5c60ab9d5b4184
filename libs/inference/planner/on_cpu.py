"""A model on a machine's processor: what it takes of its RAM."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from libs.inference.planner.activations import activation_bytes
from libs.inference.planner.changes import Question
from libs.inference.planner.command import Naming, model_arguments
from libs.inference.planner.devices import Node
from libs.inference.planner.kv_cache import kv_layout
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Options, options_of
from libs.inference.planner.sentences import option_refusals
from libs.inference.planner.split import Parallel
from libs.inference.planner.weights import weight_bytes

PROGRAM_BYTES = 2 * GIB
"""Python, PyTorch and vLLM themselves, before a model is loaded."""

METHODS = frozenset({"awq", "gptq", "int8", "compressed-tensors"})
"""Quantisations that the CPU backend runs. Source: vLLM's installation page for CPUs."""

BLOCK_TOKENS = 128
BATCHED_TOKENS, SEQUENCES = 2048, 128
"""Source: `engine/arg_utils.py` (`get_batch_defaults`) and `platforms/cpu.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPlan:
    """One engine on a node's processor. `ram` is what it is to claim, in bytes."""

    node_id: str
    ram: int
    weights: int
    kv_cache: int
    activation: int
    program: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    max_concurrency: float
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    reasons: tuple[str, ...]


def plan_on_cpu(question: Question, naming: Naming) -> tuple[CpuPlan | None, str]:
    """The node with most free RAM, and why none will do where it does not hold the model."""
    node = max(question.nodes, key=lambda each: each.ram, default=None)
    if question.goal.forced and (question.goal.tensor or 1) * (question.goal.pipeline or 1) > 1:
        return None, "On a CPU this planner starts one rank: leave tensor and pipeline parallelism at 1."
    if node is None or node.ram == 0:
        return None, "There is no GPU that could be used, and no node says how much RAM is free."
    method = question.facts.quantisation.method if question.facts.quantisation else None
    if method is not None and method not in METHODS:
        return None, f"vLLM does not run the quantisation {method} on a CPU."
    options = _options(node, question)
    for refusal in option_refusals(question.facts, options):
        return None, refusal.message
    found = _on(node, question, naming, options)
    if found.ram > node.ram:
        text = (
            f"The model needs {found.ram / GIB:.2f} GiB of RAM (weights {found.weights / GIB:.2f}, cache "
            f"{found.kv_cache / GIB:.2f}), and {node.node_id} has {node.ram / GIB:.2f} GiB free."
        )
        return None, text
    return found, ""


def _options(node: Node, question: Question) -> Options:
    asked = replace(
        question.asked,
        max_num_batched_tokens=question.asked.max_num_batched_tokens or BATCHED_TOKENS,
        max_num_seqs=question.asked.max_num_seqs or SEQUENCES,
        enforce_eager=True,
    )
    return options_of(question.facts, asked, question.engine, node.ram)


def _on(node: Node, question: Question, naming: Naming, options: Options) -> CpuPlan:
    layout = kv_layout(question.facts, Parallel(), cache_type=options.kv_cache_dtype, block_tokens=BLOCK_TOKENS)
    demand = options.demand(Parallel())
    wanted = math.ceil(question.goal.concurrency * layout.request_bytes(demand)) + layout.block_bytes
    gib = max(1, math.ceil(wanted / GIB))
    blocks = layout.blocks_in(gib * GIB)
    weights, peak = weight_bytes(question.facts, Parallel()), activation_bytes(question.facts, Parallel(), options)
    arguments = [*model_arguments(naming), "--max-model-len", str(options.max_model_len)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs)]
    arguments += ["--max-num-batched-tokens", str(options.max_num_batched_tokens)]
    arguments += ["--dtype", naming.dtype] if naming.dtype else []
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(gib)}
    if node.threads:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{node.threads - 1}"
    return CpuPlan(
        node_id=node.node_id,
        ram=weights + gib * GIB + peak + PROGRAM_BYTES,
        weights=weights,
        kv_cache=gib * GIB,
        activation=peak,
        program=PROGRAM_BYTES,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_tokens=layout.tokens(blocks, demand),
        max_concurrency=layout.concurrency(blocks, demand),
        arguments=tuple(arguments),
        environment=environment,
        reasons=(f"{node.node_id} serves it on its processor: {gib} GiB of RAM are its cache.",),
    )
