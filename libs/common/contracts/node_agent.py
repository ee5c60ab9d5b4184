"""What a node's agent shows of its engines and jobs."""

from typing import Annotated, Literal

from pydantic import Field

from libs.common.contracts.base import Message, Moment
from libs.common.contracts.node_registry import Engine, Mib
from libs.common.contracts.work_marshaling import WorkError


class EngineView(Engine):
    """An engine with what is measured of its process."""

    pid: int | None = None
    memory_mb: Mib | None = Field(None, description="resident memory of its processes, measured")
    started_at: Moment | None = None
    adopted: bool = Field(False, description="started by an earlier run of the agent, and found again")
    restarts: int = Field(0, ge=0, description="how often it was started anew because it died or hung")


class Engines(Message):
    engines: tuple[EngineView, ...]


class JobView(Message):
    """An attempt on this node, known by its item and its number: its token is a secret."""

    job_id: str = Field(description="`work_id`, `@`, the attempt's number")
    work_id: str
    attempt: int
    work_type: str
    model_name: str | None = None
    state: Literal["running", "ended", "delivered", "stopped"] = Field(
        description="`ended`: its outcome is known here and not yet delivered; `stopped`: cancelled or fenced"
    )
    accepted_at: Moment
    ended_at: Moment | None = None
    succeeded: bool | None = None
    error: WorkError | None = None


class JobLog(Message):
    """What a job has written, in the order in which it came. Of long output the end."""

    job_id: str
    over: bool = Field(description="nothing more will come")
    text: str
    next_after: int = Field(description="characters up to the end of `text`: ask with `after` for what comes later")
    left_out: int = Field(0, description="characters between `after` and `text`, no longer kept or not asked for")


class DrainAgent(Message):
    """Let this node finish what it runs and take nothing more."""

    reason: Annotated[str, Field(max_length=512)] = ""


class AgentDraining(Message):
    """Whether this node takes work, and who does not want it to. Holds across restarts."""

    draining: bool
    reason: str = ""
    by: tuple[Literal["owner", "registry", "stopping"], ...] = ()
    running: int = Field(description="attempts that are being finished")


class Jobs(Message):
    jobs: tuple[JobView, ...]
    running: int
    undelivered: int = Field(description="outcomes that NATS does not have yet")
