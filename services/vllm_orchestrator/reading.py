"""The documents that a request is about: the model's, and those of what guesses ahead of it."""

from dataclasses import replace

from libs.common.contracts.vllm_orchestrator import PlanRequest
from libs.inference.planner.speculation import needs_documents
from services.vllm_orchestrator.asking import NAMELESS, wanted_drafts
from services.vllm_orchestrator.model import ModelDocuments
from services.vllm_orchestrator.models import ModelSource


async def documents_of(models: ModelSource, request: PlanRequest) -> ModelDocuments:
    """Raises `UnknownModel`, `GatedModel`, `Malformed` for documents that cannot be read, or `Unavailable`."""
    if request.configuration is not None:
        found = ModelDocuments(model_name=request.model_name or NAMELESS, config=request.configuration)
    else:
        assert request.model_name is not None
        found = await models.read(request.model_name, request.revision)
    return replace(found, draft=await _draft(models, request))


async def _draft(models: ModelSource, request: PlanRequest) -> ModelDocuments | None:
    asked = request.speculative_config
    if asked is None or asked.model is None or not needs_documents(wanted_drafts(asked)):
        return None
    if asked.configuration is not None:
        return ModelDocuments(model_name=asked.model, config=asked.configuration)
    return await models.read(asked.model, asked.revision)
