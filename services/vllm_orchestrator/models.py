"""Where models' configurations come from."""

from typing import ClassVar, Protocol

from libs.common.errors import Forbidden, NotFound
from services.vllm_orchestrator.model import ModelDocuments


class UnknownModel(NotFound):
    """No model of this name is on this machine or, where it may be asked, on the hub."""

    code: ClassVar[str] = "unknown_model"


class GatedModel(Forbidden):
    """The model's owner grants access one by one, and our token, or its absence, has none."""

    code: ClassVar[str] = "gated_model"


class LocalModels(Protocol):
    async def find(self, model_name: str, revision: str | None) -> ModelDocuments | None:
        """None where it is not on this machine. Raises `Malformed` for documents that cannot be read."""
        ...


class ModelSource(Protocol):
    async def read(self, model_name: str, revision: str | None) -> ModelDocuments:
        """Raises `UnknownModel`, `GatedModel`, `Malformed` for documents that cannot be read, or `Unavailable`."""
        ...
