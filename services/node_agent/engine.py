"""An inference engine on this machine, as the rest of the agent sees it. Port of `engine_llama.py`."""

from typing import Protocol

from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import Engine


class EngineDoor(Protocol):
    def now(self) -> Engine:
        """What it serves and in which state it is, as far as is known now."""
        ...

    def view(self) -> EngineView:
        """The same with what is measured."""
        ...

    def work_types(self) -> tuple[str, ...]:
        """The kinds of work it can do once it is ready."""
        ...

    def suspect(self) -> None:
        """A request failed in a way that its death would explain: look at once."""
        ...
