"""An inference engine on this machine, as the rest of the agent sees it. Port of `engine_llama.py`, `engine_openai.py`
and their helpers."""

from pathlib import Path
from typing import NoReturn, Protocol

from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import Engine
from services.node_agent.engine_facts import EngineReport


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


class KeptEngine(EngineDoor, Protocol):
    """An engine that the agent looks after."""

    async def run(self) -> NoReturn:
        """Until cancelled."""
        ...

    async def stop(self) -> None:
        """`run` must have been cancelled before."""
        ...


class EngineFiles(Protocol):
    """What an engine's process and its agent share on disk."""

    lock: Path
    log: Path
    report_path: Path

    def clear(self) -> None:
        """Remove what an earlier process left. Only for who holds the lock."""
        ...

    def report(self) -> EngineReport | None:
        """What the process tells of itself; None when it has told nothing yet."""
        ...

    def last_words(self) -> str:
        """The end of its log, in one line."""
        ...

    def bound_log(self) -> None:
        """Keep its log from filling the disk."""
        ...
