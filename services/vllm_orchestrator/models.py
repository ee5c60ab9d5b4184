"""Where models' configurations come from."""

from typing import ClassVar, Protocol

from libs.common.errors import Forbidden, NotFound
from libs.inference.planner.gguf import GgufHeader
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

    async def find_gguf(self, model_name: str, file: str) -> GgufHeader | None:
        """The same of one GGUF file, by its name in the model's folder or by its path; it may be split over several."""
        ...


class ModelSource(Protocol):
    async def read(self, model_name: str, revision: str | None) -> ModelDocuments:
        """Raises `UnknownModel`, `GatedModel`, `Malformed` for documents that cannot be read, or `Unavailable`."""
        ...

    async def read_gguf(self, model_name: str, file: str, revision: str | None) -> GgufHeader:
        """Of one GGUF file of a model. Raises the same."""
        ...
