"""What vLLM refuses to start, in its own words."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from libs.inference.planner.facts import Attention, Draft, DraftMethod, ModelFacts
from libs.inference.planner.matrices import Matrix, Part, Split, alike, embedding, layer_matrices
from libs.inference.planner.quantisation import storage_of
from libs.inference.planner.split import Parallel, stage_ranges
from libs.inference.planner.versions import NEWEST_ENGINE, Engine
from libs.inference.planner.weights import VOCABULARY_PADDING, encoder_is_whole, rounded_up

MARLIN_OUTPUTS, MARLIN_INPUTS = 64, 128
NO_PIPELINE = (
    "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` interface."
)
DRAFTS_IN_STAGES = (0, 18)
"""The first version that keeps drafts on the last stage alone."""

WITHOUT_EAGLE3 = frozenset(
    {
        *("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Glm4MoeForCausalLM"),
        *("MixtralForCausalLM", "OPTForCausalLM", "Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration"),
    }
)
"""Architectures that hand no states to a head of EAGLE 3. Source: `SupportsEagle3` in `models/*.py` of 0.32."""

STATES_OVER_STAGES = frozenset(
    {
        *("LlamaForCausalLM", "MistralForCausalLM", "Mistral3ForConditionalGeneration", "Qwen2ForCausalLM"),
        *("Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
        *("Phi3ForCausalLM", "Llama4ForConditionalGeneration"),
    }
)
"""Those that hand them from stage to stage. Source: `supports_aux_hidden_states_over_pp` in `models/*.py` of 0.32."""

MARLIN_METHODS = frozenset({"awq", "gptq", "auto-round", "compressed-tensors"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A division that vLLM does not start: a stable code, and the sentence vLLM gives."""

    code: str
    message: str


def refusals(facts: ModelFacts, parallel: Parallel, engine: Engine = NEWEST_ENGINE) -> list[Refusal]:
    """Why vLLM would not start this division; empty where it would. The first one is the one it gives."""
    found = [*_heads(facts, parallel), *_vocabulary(facts, parallel), *_pipeline(facts, parallel)]
    found += [*_experts(facts, parallel), *_context(facts, parallel), *_drafts(facts, parallel, engine)]
    return found + [each for each in dict.fromkeys(_quantised(facts, parallel)) if each not in found]


def _heads(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `config/model.py` (`verify_with_parallel_config`), `models/llama.py`, `models/vision.py`."""
    ranks = parallel.tensor
    if facts.heads % ranks:
        message = (
            f"Total number of attention heads ({facts.heads}) must be divisible by tensor parallel size ({ranks})."
        )
        yield Refusal(code="attention_heads", message=message)
    for count in sorted({mixer.kv_heads for mixer in facts.mixers if hasattr(mixer, "kv_heads")}):
        larger, smaller = max(count, ranks), min(count, ranks)
        if larger % smaller:
            text = f"{larger} is not divisible by {smaller}"  # the words of `QKVParallelLinear`
            message = f"{text}: {count} heads of keys can neither be divided nor replicated over {ranks} ranks."
            yield Refusal(code="kv_heads", message=message)
    if facts.vision is not None and facts.vision.heads % ranks and not encoder_is_whole(facts, parallel):
        message = f"{facts.vision.heads} is not divisible by {ranks}"
        yield Refusal(code="vision_heads", message=message)


def _experts(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `config/model.py` (`_verify_with_expert_parallelism`), `config/parallel.py`
    (`_validate_parallel_config`), `model_executor/layers/fused_moe/layer.py`."""
    manner, ranks = parallel.manner, parallel.tensor
    if parallel.expert_parallel and not facts.experts:
        text = "Number of experts in the model must be greater than 0 when expert parallelism is enabled."
        yield Refusal(code="experts", message=text)
    if manner.redundant and not manner.balanced:
        text = (
            f"num_redundant_experts is set to {manner.redundant} but EPLB is not enabled. Either enable EPLB or unset "
            "num_redundant_experts."
        )
        yield Refusal(code="balanced_experts", message=text)
    if not manner.balanced:
        return
    if not parallel.expert_parallel:
        yield Refusal(code="balanced_experts", message="enable_expert_parallel must be True to use EPLB.")
    if ranks == 1:
        text = "EPLB requires tensor, prefill-context, or data parallelism, but got TP=1, PCP=1, DP=1."
        yield Refusal(code="balanced_experts", message=text)
    for count in sorted({block.count + manner.redundant for block in facts.experts}):
        if count % ranks:
            text = (
                f"EPLB currently only supports even distribution of experts across ranks. Got {count} experts and "
                f"{ranks} EP ranks."
            )
            yield Refusal(code="balanced_experts", message=text)


def _context(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `config/parallel.py` (`_validate_parallel_config`), `config/model.py` (`verify_with_parallel_config`)."""
    sharers, ranks = parallel.manner.context, parallel.tensor
    if sharers == 1:
        return
    if ranks % sharers:
        text = f"tp_size={ranks} must be divisible by dcp_size={sharers}."
        yield Refusal(code="context_parallel", message=text)
    keys = max((mixer.kv_heads for mixer in facts.mixers if isinstance(mixer, Attention)), default=0)
    if not keys:
        return
    if ranks <= keys:
        text = (
            f"Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({ranks}) to be greater than "
            f"the model's total number of KV heads ({keys}). Increase `--tensor-parallel-size` or set "
            "`--decode-context-parallel-size 1`."
        )
        yield Refusal(code="context_parallel", message=text)
    elif sharers > ranks // keys:
        text = (
            f"`--decode-context-parallel-size` ({sharers}) exceeds the maximum supported value ({ranks // keys}) for "
            f"`--tensor-parallel-size` ({ranks}) and {keys} model KV heads."
        )
        yield Refusal(code="context_parallel", message=text)
    elif facts.heads // keys % sharers:
        text = (
            f"The model's number of query heads per KV head ({facts.heads // keys}) must be divisible by "
            f"`--decode-context-parallel-size` ({sharers}) for GQA/MQA."
        )
        yield Refusal(code="context_parallel", message=text)


def _vocabulary(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `model_executor/layers/vocab_parallel_embedding.py`, `distributed/utils.py` (`divide`)."""
    padded = rounded_up(embedding(facts).outputs, VOCABULARY_PADDING)
    if padded % parallel.tensor:
        yield Refusal(code="vocabulary", message=f"{padded} is not divisible by {parallel.tensor}")


def _pipeline(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `config/model.py` (`verify_with_parallel_config`)."""
    if parallel.pipeline > 1 and not facts.pipeline:
        yield Refusal(code="pipeline_unsupported", message=NO_PIPELINE)
    if parallel.pipeline > len(facts.layers):
        message = f"{len(facts.layers)} layers cannot be divided over {parallel.pipeline} stages."
        yield Refusal(code="too_many_stages", message=message)
    elif parallel.pipeline > 1:
        yield from _shared_caches(facts, parallel)


def _shared_caches(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    """Source: `model_executor/layers/attention/attention.py` (`validate_kv_sharing_target`)."""
    for held in stage_ranges(len(facts.layers), parallel):
        for index in held:
            source = _shares_with(facts, index)
            if source is not None and source not in held:
                text = (
                    f"Specified KV sharing target layer for layers.{index}.self_attn.attn is not valid: target layer "
                    f"layers.{source}.self_attn.attn is not a valid Attention layer in the model."
                )
                yield Refusal(code="shared_cache", message=text)
                return


def _shares_with(facts: ModelFacts, index: int) -> int | None:
    """The last layer of its kind that has a cache of its own; None for a layer that has one itself."""
    mixer = facts.layers[index].mixer
    if not isinstance(mixer, Attention) or not mixer.shared:
        return None
    own = replace(mixer, shared=False)
    return max((place for place, layer in enumerate(facts.layers) if layer.mixer == own), default=None)


def _drafts(facts: ModelFacts, parallel: Parallel, engine: Engine) -> Iterator[Refusal]:
    """Source: `config/speculative.py` (`__post_init__`, `_verify_and_get_draft_tp`,
    `verify_equal_vocab_size_if_draft_model`), `v1/spec_decode/draft_model.py`."""
    draft = facts.draft
    if draft is None:
        return
    if draft.method is DraftMethod.MTP:
        yield from _own_drafts(facts, draft)
    if draft.model is not None:
        yield from _other_model(facts, draft, draft.model, parallel)
    if parallel.pipeline > 1:
        yield from _drafts_in_stages(facts, draft, engine)


def _own_drafts(facts: ModelFacts, draft: Draft) -> Iterator[Refusal]:
    ahead, layers = draft.tokens, facts.draft_layers
    if not layers:
        yield Refusal(code="draft_method", message="Unsupported speculative method: 'mtp'")
    elif ahead > layers and ahead % layers:
        text = f"num_speculative_tokens:{ahead} must be divisible by n_predict={layers}"
        yield Refusal(code="draft_tokens", message=text)


def _other_model(facts: ModelFacts, draft: Draft, model: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    asked, ranks = draft.asked_tensor or parallel.tensor, parallel.tensor
    if asked not in (1, ranks):
        text = (
            f"speculative_draft_tensor_parallel_size={asked} cannot be other value than 1 or target model "
            "tensor_parallel_size"
        )
        yield Refusal(code="draft_tensor_parallel_size", message=text)
    elif asked != ranks and draft.method is DraftMethod.DRAFT_MODEL:
        text = (
            "Currently, 'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same. Got "
            f"{asked} and {ranks}. Please pass 'draft_tensor_parallel_size' in the speculative_config."
        )
        yield Refusal(code="draft_tensor_parallel_size", message=text)
    if draft.method is DraftMethod.DRAFT_MODEL and model.vocabulary != facts.vocabulary:
        text = (
            "Target and draft model should have the same vocabulary size. Target model "
            f"vocab_size={facts.vocabulary}. Draft model vocab_size={model.vocabulary}. Using models with different "
            "tokenizers can cause out-of-bounds errors during speculative decoding."
        )
        yield Refusal(code="draft_vocabulary", message=text)
    if draft.method is DraftMethod.EAGLE3 and facts.architecture in WITHOUT_EAGLE3:
        yield Refusal(code="draft_method", message="Model does not support EAGLE3 interface")
    yield from refusals(model, Parallel(tensor=ranks))


def _drafts_in_stages(facts: ModelFacts, draft: Draft, engine: Engine) -> Iterator[Refusal]:
    """Before 0.18 a draft was to be in stages as the model is, which only whole models can.

    Source: `config/speculative.py` (`create_draft_parallel_config`), `v1/worker/gpu/spec_decode/eagle/eagle3_utils.py`
    (`verify_supports_aux_hidden_states_over_pp`).
    """
    whole = draft.method in (DraftMethod.NGRAM, DraftMethod.DRAFT_MODEL)
    if engine.version < DRAFTS_IN_STAGES and not whole:
        yield Refusal(code="draft_pipeline", message=NO_PIPELINE)
    elif draft.method is DraftMethod.EAGLE3 and facts.architecture not in STATES_OVER_STAGES:
        text = f"{facts.architecture} does not support eagle3 with pipeline parallelism"
        yield Refusal(code="draft_pipeline", message=text)


def _quantised(facts: ModelFacts, parallel: Parallel) -> Iterator[Refusal]:
    if facts.quantisation is None or parallel.tensor == 1:
        return
    for index, _ in alike(facts, range(len(facts.layers))):
        for matrix in layer_matrices(facts, index):
            yield from _matrix(facts, matrix, parallel)


def _matrix(facts: ModelFacts, matrix: Matrix, parallel: Parallel) -> Iterator[Refusal]:
    kind = storage_of(facts.quantisation, matrix.module) if matrix.linear else None
    whole = matrix.part is Part.EXPERTS and parallel.expert_parallel
    if kind is None or whole or matrix.split in (Split.REPLICATED, Split.VOCABULARY):
        return
    if kind.method == "fp8" and kind.block is not None:
        yield from _blocks(matrix, parallel, kind.block)
    elif kind.method in MARLIN_METHODS:
        yield from _marlin(matrix, parallel, kind.group)


def _blocks(matrix: Matrix, parallel: Parallel, block: tuple[int, int]) -> Iterator[Refusal]:
    """Source: `quantization/utils/fp8_utils.py` (`validate_fp8_block_shape`), `quantization/fp8.py` for experts."""
    inputs, outputs = matrix.inputs // parallel.tensor, _output_size(matrix, parallel)
    experts = matrix.part is Part.EXPERTS
    if matrix.split is Split.INPUTS:
        if inputs % block[1]:
            what = "The input_size of down's weight" if experts else "Weight input_size_per_partition"
            message = f"{what} = {inputs} is not divisible by weight quantization block_k = {block[1]}."
            yield Refusal(code="quantisation_block", message=message)
    elif outputs % block[0]:
        what = "The output_size of gate's and up's weight" if experts else "Weight output_partition_size"
        message = f"{what} = {outputs} is not divisible by weight quantization block_n = {block[0]}."
        yield Refusal(code="quantisation_block", message=message)


def _output_size(matrix: Matrix, parallel: Parallel) -> int:
    """The outputs of one of the matrices that are kept as one, on one GPU."""
    if matrix.split is Split.KV_HEADS:
        return matrix.outputs // matrix.kv_heads * max(1, matrix.kv_heads // parallel.tensor)
    return matrix.outputs // matrix.merged // parallel.tensor


def _marlin(matrix: Matrix, parallel: Parallel, group: int) -> Iterator[Refusal]:
    """Source: `quantization/utils/marlin_utils.py` (`verify_marlin_supports_shape`)."""
    hint = "Consider reducing tensor_parallel_size or running with --quantization gptq."
    if matrix.split is not Split.INPUTS:
        outputs = _output_size(matrix, parallel)
        if outputs % MARLIN_OUTPUTS:
            message = (
                f"Weight output_size_per_partition = {outputs} is not divisible by min_thread_n = {MARLIN_OUTPUTS}."
            )
            yield Refusal(code="quantisation_kernel", message=f"{message} {hint}")
        return
    inputs = matrix.inputs // parallel.tensor
    if matrix.part is not Part.EXPERTS and inputs % MARLIN_INPUTS:
        message = f"Weight input_size_per_partition = {inputs} is not divisible by min_thread_k = {MARLIN_INPUTS}."
        yield Refusal(code="quantisation_kernel", message=f"{message} {hint}")
    elif group > 0 and inputs % group:
        message = f"Weight input_size_per_partition = {inputs} is not divisible by group_size = {group}."
        yield Refusal(code="quantisation_group", message=f"{message} {hint}")
