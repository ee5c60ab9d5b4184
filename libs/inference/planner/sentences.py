"""How vLLM says that a start failed for want of memory, and what it says of options that contradict each other."""

from collections.abc import Iterator

from libs.inference.planner.facts import ModelFacts, Quantisation
from libs.inference.planner.memory import GIB, GpuMemory, Start, Verdict
from libs.inference.planner.options import Options
from libs.inference.planner.rules import Refusal
from libs.inference.planner.split import Parallel

LEAST_CAPABILITY = {
    "awq": 75,
    "auto-round": 60,
    "bitsandbytes": 70,
    "compressed-tensors": 70,
    "fbgemm_fp8": 80,
    "fp8": 75,
    "gptq": 60,
    "int8": 75,
    "mxfp4": 80,
    "nvfp4": 75,
}
"""Source: `get_min_capability` in `model_executor/layers/quantization/*.py`."""

LEAST_ENGINE_CAPABILITY = 70
"""Source: vLLM's installation page: GPUs with compute capability 7.0 or higher."""


def option_refusals(facts: ModelFacts, options: Options) -> Iterator[Refusal]:
    """Source: `config/model.py` (`_get_and_verify_max_len`), `config/scheduler.py` (`verify_max_model_len`)."""
    if facts.max_position and options.max_model_len > facts.max_position:
        other = facts.max_position if facts.length_field == "model_max_length" else None
        yield Refusal(
            code="max_model_len",
            message=(
                f"User-specified max_model_len ({options.max_model_len}) is greater than the derived max_model_len "
                f"({facts.length_field}={facts.max_position} or model_max_length={other} in model's config.json). "
                "To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
            ),
        )
    if options.max_num_batched_tokens < options.max_num_seqs:
        yield Refusal(
            code="max_num_batched_tokens",
            message=(
                f"max_num_batched_tokens ({options.max_num_batched_tokens}) must be greater than or equal to "
                f"max_num_seqs ({options.max_num_seqs})."
            ),
        )

    least = options.max_num_seqs * (options.draft_tokens + 1)
    if facts.adapters and facts.draft and options.max_num_batched_tokens < least:
        text = "Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens"
        yield Refusal(code="max_num_batched_tokens", message=text)


def capability_refusal(quantisation: Quantisation | None, capability: tuple[int, int] | None) -> Refusal | None:
    """Whether vLLM runs at all on such a GPU; None where it does, or where its capability is not known."""
    if capability is None:
        return None
    found = 10 * capability[0] + capability[1]
    if found < LEAST_ENGINE_CAPABILITY:
        text = f"vLLM needs compute capability 7.0 or higher, this GPU has {capability[0]}.{capability[1]}."
        return Refusal(code="compute_capability", message=text)
    kinds = {kind.method for kind in (quantisation, *(each for _, each in quantisation.named))} if quantisation else ()
    for method in sorted(kinds):
        least = LEAST_CAPABILITY.get(method, 0)
        if found < least:
            message = (
                f"The quantization method {method} is not supported for the current GPU. Minimum capability: {least}. "
                f"Current capability: {found}."
            )
            return Refusal(code="compute_capability", message=message)
    return None


def too_small(found: Start, parallel: Parallel, options: Options, concurrency: float, longest: int) -> Refusal:
    """Why a start does not serve what was asked. `longest` is the largest length that it would start with."""
    worst = min(found.stages, key=lambda memory: memory.kv_cache)
    stage = found.stages.index(worst)
    where = f"stage {stage} of {parallel.pipeline}: " if parallel.pipeline > 1 else ""
    needed = found.needs[stage].layout.request_bytes(options.demand(parallel))
    messages = {
        Verdict.BUSY: (
            f"Free memory on device ({_gib(worst.free)}/{_gib(worst.total)} GiB) on startup is less than desired GPU "
            f"memory utilization ({options.gpu_memory_utilization:g}, {_gib(worst.budget)} GiB). Decrease GPU memory "
            "utilization or reduce GPU memory used by other processes."
        ),
        Verdict.WEIGHTS: (
            f"CUDA out of memory: the weights take {_gib(worst.weights)} GiB of each GPU, and {_gib(worst.free)} GiB "
            "are free."
        ),
        Verdict.NO_CACHE: (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
            f"engine. (weights {_gib(worst.weights)}, activations {_gib(worst.activation)}, CUDA graphs "
            f"{_gib(worst.graphs)}, beside PyTorch {_gib(worst.non_torch)} of a budget of {_gib(worst.budget)} GiB)"
        ),
        Verdict.TOO_LONG: (
            f"To serve at least one request with the models's max seq len ({options.max_model_len}), ({_gib(needed)} "
            "GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({_gib(max(0, worst.kv_cache))} GiB). Based on the available memory, the estimated maximum model length "
            f"is {longest}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing "
            "the engine."
        ),
        Verdict.FEW_STATES: _few_states(found, options, worst, stage),
    }
    text = messages.get(found.verdict)
    if text is None:
        text = f"The cache holds {found.safe_concurrency:.2f} requests of the longest length, not {concurrency:g}."
        return Refusal(code="concurrency", message=text)
    return Refusal(code=found.verdict.value, message=where + text)


def _few_states(found: Start, options: Options, worst: GpuMemory, stage: int) -> str:
    blocks = found.needs[stage].layout.blocks_in(worst.kv_cache)
    return (
        f"max_num_seqs ({options.max_num_seqs}) exceeds available Mamba cache blocks ({blocks}). Each decode sequence "
        "requires one Mamba cache block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most "
        f"{blocks} or increase gpu_memory_utilization."
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
