"""What is told of engines over the whole mesh."""

from pydantic import Field

from libs.common.contracts.base import Message
from libs.common.contracts.node_registry import Engine


class PlacedEngine(Message):
    """An engine and the node it is on. `engine.url` is as that node itself reaches it."""

    node_id: str
    engine: Engine
    free_slots: int = Field(description="of the whole node")
    draining: bool
    heard_seconds_ago: float = Field(ge=0)


class PlacedEngines(Message):
    engines: tuple[PlacedEngine, ...]


class ServedModel(Message):
    """A model and where it is served."""

    model_name: str
    test_model: bool
    ready: int = Field(description="engines that would take a request now")
    slots: int = Field(description="requests that those serve at once, together")
    node_ids: tuple[str, ...]


class ServedModels(Message):
    models: tuple[ServedModel, ...]
