"""Containers on this machine, as the rest of the agent sees them. Port of `containers_docker.py` and
`containers_folder.py`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """A container that is to be started. What needs to be known of it afterwards is in its labels."""

    name: str
    image: str
    command: Sequence[str] | None
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    work_folder: str
    cpus: float
    memory_mb: int
    file_mb: int
    gpu_uuids: Sequence[str]
    network: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFound:
    """A container of ours. `started`: it runs or ran, and was not only made."""

    name: str
    container_id: str
    labels: Mapping[str, str]
    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEnd:
    """How a container ended. `output_cut`: of long output only the end is here."""

    exit_code: int
    oom_killed: bool
    seconds: float
    stdout: str
    stderr: str
    output_cut: bool


class Containers(Protocol):
    """All methods but `problem` raise `Unavailable` when the engine does not answer."""

    def problem(self) -> str | None:
        """Why it cannot be used now; None when it answered last time."""
        ...

    async def look(self) -> None:
        """Ask it whether it is there, and keep the answer for `problem`."""
        ...

    async def start(self, plan: ContainerPlan) -> str:
        """Make it and start it: a second one of that name is refused. Returns its id. Raises `JobFailed` when it cannot
        be started; it may be there all the same."""
        ...

    async def ours(self) -> list[ContainerFound]:
        """All containers that carry this node's label, also those that ended."""
        ...

    async def ended(self, name: str, tell: Callable[[str], None]) -> ContainerEnd | None:
        """Tell its output until it has ended; None when there is no such container."""
        ...

    async def stop(self, name: str, grace_seconds: float) -> None:
        """SIGTERM, and after the grace SIGKILL for all that is in it. Returns when it has ended or never was."""
        ...

    async def remove(self, name: str) -> None:
        """Remove it with all that is in it, running or not. Nothing happens when it is gone already."""
        ...


class WorkFolders(Protocol):
    """A folder for each container, which it sees as its work folder."""

    async def prepare(self, name: str, files: Mapping[str, bytes]) -> str:
        """Make it with these files in it; where it is. Raises `JobFailed` when the disk does not take them."""
        ...

    async def used_bytes(self, name: str) -> int:
        """What its files take on the disk, small ones rounded up."""
        ...

    async def take(self, name: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        """The content of these files. Raises `JobFailed` for one that is missing, no plain file, or too much."""
        ...

    async def remove(self, name: str) -> None: ...

    async def remove_others(self, kept: Collection[str]) -> None:
        """Remove the folders of all containers but these."""
        ...
