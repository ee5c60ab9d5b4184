"""From a request and a model's documents to the planner's question."""

from collections.abc import Mapping, Sequence

from libs.common.contracts.vllm_orchestrator import PlanRequest, SpeculativeConfig
from libs.common.errors import Malformed
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.calibration import MeasuredStart
from libs.inference.planner.changes import Question
from libs.inference.planner.command import Backend, Naming
from libs.inference.planner.devices import Node
from libs.inference.planner.facts import Adapters, ModelFacts
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.goal import Goal, Prefer
from libs.inference.planner.kv_cache import ELEMENT_BYTES
from libs.inference.planner.options import Asked
from libs.inference.planner.overrides import with_adapters, with_dtype, with_quantisation
from libs.inference.planner.speculation import Wanted, with_draft
from libs.inference.planner.split import Manner
from libs.inference.planner.stored import with_parameter_count, with_stored_tensors, with_weights_bytes
from libs.inference.planner.versions import Engine, engine_of
from services.vllm_orchestrator.model import ModelDocuments

NAMELESS = "model"
NO_DATA_PARALLEL = (
    "data_parallel_size must be 1: every rank would hold the whole model but for its experts, and these are only dealt "
    "out over the ranks of one stage here. Ask for replicas"
)


def question_of(
    request: PlanRequest, documents: ModelDocuments, nodes: Sequence[Node], starts: Sequence[MeasuredStart] = ()
) -> Question:
    """Raises `Malformed` for a field that is wrong or contradicts another, `Unsupported` for a model beyond us."""
    if request.kv_cache_dtype not in ELEMENT_BYTES:
        known = ", ".join(ELEMENT_BYTES)
        raise Malformed(
            f"kv_cache_dtype must be one of {known}, not {request.kv_cache_dtype!r}", field="kv_cache_dtype"
        )
    if request.data_parallel_size not in (None, 1):
        raise Malformed(NO_DATA_PARALLEL, field="data_parallel_size")
    return Question(
        facts=facts_of(request, documents),
        asked=Asked(
            gpu_memory_utilization=request.gpu_memory_utilization,
            max_model_len=request.max_model_len,
            max_num_batched_tokens=request.max_num_batched_tokens,
            max_num_seqs=request.max_num_seqs,
            kv_cache_dtype=request.kv_cache_dtype,
            enforce_eager=request.enforce_eager,
        ),
        engine=engine_of(request.vllm_version) if request.vllm_version else Engine(),
        nodes=nodes,
        goal=Goal(
            concurrency=request.concurrency,
            prefer=Prefer(request.prefer) if request.prefer else None,
            tensor=request.tensor_parallel_size,
            pipeline=request.pipeline_parallel_size,
            replicas=request.replicas,
            tokens_per_second=request.tokens_per_second,
            manner=Manner(
                context=request.decode_context_parallel_size,
                balanced=request.enable_eplb,
                redundant=request.num_redundant_experts,
                whole_encoder=request.mm_encoder_tp_mode == "data",
            ),
            expert_parallel=request.enable_expert_parallel,
        ),
        starts=starts,
    )


def facts_of(request: PlanRequest, documents: ModelDocuments) -> ModelFacts:
    try:
        facts = model_facts(documents.config, documents.quantisation)
    except (Malformed, Unsupported) as error:
        named = f"config.json of {documents.model_name}" if request.configuration is None else "model_config"
        raise type(error)(f"{named}: {error.message}", **error.details) from error
    facts = with_quantisation(with_dtype(facts, request.dtype), request.quantization)
    facts = with_adapters(facts, request.max_loras, request.max_lora_rank)
    return _with_draft(_measured(facts, request, documents), request, documents.draft)


def _measured(facts: ModelFacts, request: PlanRequest, documents: ModelDocuments) -> ModelFacts:
    if request.weights_bytes is not None:
        return with_weights_bytes(facts, request.weights_bytes)
    if request.parameter_count is not None:
        return with_parameter_count(facts, request.parameter_count)
    loaded_otherwise = request.quantization is not None and "quantization_config" not in documents.config
    return facts if loaded_otherwise or not documents.tensors else with_stored_tensors(facts, documents.tensors)


def _with_draft(facts: ModelFacts, request: PlanRequest, documents: ModelDocuments | None) -> ModelFacts:
    if request.speculative_config is None:
        return facts
    wanted = wanted_drafts(request.speculative_config)
    if documents is None:
        return with_draft(facts, wanted)
    try:
        return with_draft(facts, wanted, documents.config, documents.quantisation, documents.tensors)
    except (Malformed, Unsupported) as error:
        raise type(error)(f"the draft {documents.model_name}: {error.message}", **error.details) from error


def wanted_drafts(asked: SpeculativeConfig) -> Wanted:
    return Wanted(
        method=asked.method,
        model=asked.model,
        num_speculative_tokens=asked.num_speculative_tokens,
        draft_tensor_parallel_size=asked.draft_tensor_parallel_size,
    )


def naming_of(request: PlanRequest, documents: ModelDocuments) -> Naming:
    name = request.model_name or NAMELESS
    return Naming(
        model_name=documents.place or name,
        served_name=name if documents.place not in ("", name) else None,
        revision=request.revision,
        dtype=request.dtype,
        quantization=request.quantization,
        adapters=Adapters(count=request.max_loras, rank=request.max_lora_rank) if request.max_loras else None,
        drafts=_named(request.speculative_config, documents.draft),
        backend=Backend(request.distributed_executor_backend),
    )


def _named(asked: SpeculativeConfig | None, documents: ModelDocuments | None) -> Mapping[str, object] | None:
    """What vLLM is told of drafts: what was asked, and where the other model's files are."""
    if asked is None:
        return None
    place = {"model": documents.place} if documents is not None and documents.place else {}
    return asked.model_dump(exclude_none=True, exclude={"configuration"}) | place
