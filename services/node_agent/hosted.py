"""Engines that others ask for: what is kept of each on disk, and how one is looked after. Port of `hosted_folder.py`
and `hosted_process.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from libs.common.contracts.engine_hosting import EngineKey, HostedEngine, StartEngine
from services.node_agent.engine import EngineDoor
from services.node_agent.hosted_door import LOOPBACK
from services.node_agent.model import ContainedEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended. `asked`: somebody wanted it."""

    at: datetime
    asked: bool
    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What was asked, and what was chosen for it before it began: `host` and `told` as in `EngineAddress`.

    `pid`, and when that process `started`, in seconds of the Unix epoch, are known once there is one.
    """

    asked: StartEngine
    port: int
    at: datetime
    host: str = LOOPBACK
    told: str = LOOPBACK
    pid: int | None = None
    started: float | None = None


class EngineContainers(Protocol):
    """Containers that engines run in. All methods raise `Unavailable` where nothing answers."""

    async def begin(self, engine: ContainedEngine) -> str:
        """Returns the id; it runs. Raises `Forbidden`, `Conflict`, and `NotFound` for an image that is not there."""
        ...

    def following(self, name: str) -> Sequence[str]:
        """With what Python is to be started to write what it writes and to end as it ends."""
        ...

    async def remove(self, name: str) -> None:
        """End it and remove it; nothing happens where it is gone already."""
        ...


class HostedFiles(Protocol):
    """What is kept of one engine. What is written is on disk when a method returns; `Unavailable` when it cannot be.

    `scratch` is a short path for what an engine keeps while it runs; it is removed when it ended.
    """

    lock: Path
    log: Path
    report: Path
    scratch: Path

    def begin(self, begun: Begun) -> None: ...

    def keep_key(self, key: str) -> str:
        """What clients have to say to it, where nobody else can read it. Returns the path."""
        ...

    def begun(self) -> Begun | None: ...

    def end(self, ended: Ended) -> None: ...

    def ended(self) -> Ended | None: ...

    def last_characters(self, count: int) -> str:
        """The end of its log."""
        ...

    def bound_log(self) -> None:
        """Keep its log from filling the disk."""
        ...


class HostedFolders(Protocol):
    """Where engines are kept, by instance, generation and rank."""

    def files(self, key: EngineKey) -> HostedFiles: ...

    def kept(self) -> Sequence[HostedFiles]:
        """Of every engine that was ever asked for and is not forgotten yet."""
        ...

    def forget(self, files: HostedFiles) -> None: ...


class Hosted(EngineDoor, Protocol):
    """One engine that was asked for."""

    asked: StartEngine

    async def start(self) -> None:
        """Returns when it runs, its reservation its own. Raises `MeshError`; then it does not run."""
        ...

    async def adopt(self) -> bool:
        """Whether an earlier agent left it running; if not, that it ended is kept."""
        ...

    async def watch(self) -> None:
        """Returns when it has ended, of itself or because it was told to."""
        ...

    async def end(self, reason: str, grace_seconds: float, drain_seconds: float = 0.0) -> None:
        """Returns when nothing of it runs any more; before, what it has in hand may end."""
        ...

    def hurry(self, drain_seconds: float) -> None:
        """Of one that is being ended: what it has in hand has so long from now, or less."""
        ...

    def tell(self) -> HostedEngine: ...

    def log(self, characters: int) -> str: ...
