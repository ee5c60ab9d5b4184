"""How a node's agent is asked to start engines, to end them, and to tell how they are."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from libs.common.contracts.base import Call, Identifier, Message, Moment
from libs.common.contracts.node_registry import EngineState

MOST_LOG_CHARACTERS = 200_000
MOST_ARGUMENTS = 256
MOST_DRAIN_SECONDS = 86_400.0
InstanceName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$", examples=["qwen"], description="an instance's name")
]
ImageName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}$", examples=["vllm/vllm-openai:v0.32.0"])
]
_Argument = Annotated[str, Field(max_length=4096)]
_Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]


class EngineProgram(StrEnum):
    """What can be started; the owner of a machine says which of them may be."""

    VLLM = "vllm"
    LLAMA = "llama.cpp"


class EngineKey(Message):
    """One process of one life of a replica of an instance: each start is a new generation, each node a rank."""

    instance: InstanceName
    replica: int = Field(0, ge=0, le=2**31)
    generation: int = Field(ge=1, le=2**31)
    rank: int = Field(0, ge=0, le=1000)


class HeldReservation(Message):
    """Memory that is kept for a process that is to be started."""

    reservation_id: Identifier
    token: int = Field(ge=1)


class RayNode(Message):
    """A Ray cluster that an engine runs on. Its head is on the node that serves; `vllm serve` waits there until the
    cluster is whole. Other nodes join it, and run nothing else."""

    arguments: tuple[_Argument, ...] = Field(min_length=1, max_length=MOST_ARGUMENTS, description="after `ray`")
    address: Annotated[str, Field(pattern=r"^\S{1,256}:\d{1,5}$")] = Field(
        description="of the head", examples=["10.0.0.2:6379"]
    )
    nodes: int = Field(1, ge=1, le=1000, description="of the whole cluster")
    gpus: int = Field(0, ge=0, le=64_000, description="of the whole cluster")
    join_seconds: float = Field(120.0, gt=0, le=86_400, description="until all have joined")


class EngineContainer(Message):
    """A container that an engine runs in: the image begins with `vllm serve`, and has these GPUs alone."""

    image: ImageName
    gpu_uuids: tuple[Identifier, ...] = Field((), max_length=64)


class StartEngine(EngineKey):
    """Start it once, however often it is asked. With a reservation: only when that became the process's own."""

    program: EngineProgram
    model_name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: tuple[_Argument, ...] = Field((), max_length=MOST_ARGUMENTS)
    environment: dict[_Variable, _Argument] = Field({}, max_length=64, description="added to the agent's own")
    serves: bool = Field(True, description="it answers requests; false: a rank that only computes")
    slots: int = Field(1, ge=1, le=4096, description="requests that it serves at once")
    context_tokens: int | None = Field(None, ge=1)
    device: Annotated[str, Field(max_length=32)] = "cpu"
    reservation_id: Identifier | None = None
    reservation_token: int | None = Field(None, ge=1)
    more_reservations: tuple[HeldReservation, ...] = Field(
        (), max_length=64, description="of GPUs that take another amount"
    )

    container: EngineContainer | None = Field(None, description="null: a process of the machine")
    ray: RayNode | None = Field(None, description="for vLLM over Ray: what is begun before it, and ends with it")

    @field_validator("arguments", "environment")
    @classmethod
    def _holds_no_null(cls, found: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        if any("\0" in text for text in (found.values() if isinstance(found, dict) else found)):
            raise ValueError("holds a null character")
        return found


class StopEngine(EngineKey):
    """End it with its whole group, or remember that it must never begin. Again is as once."""

    grace_seconds: float = Field(10.0, ge=0, le=600, description="between SIGTERM and SIGKILL")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=MOST_DRAIN_SECONDS,
        description="so long the requests that it has in hand may take to end; it gets no others from here on. "
        "Asked again with less, it is less",
    )


class HostedEngine(EngineKey):
    """A started engine, or one that was. STOPPED: it was asked to end; FAILED: it ended of itself, or hung."""

    program: EngineProgram
    model_name: str
    state: EngineState
    pid: int | None = None
    url: str | None = Field(None, description="as others reach it, where its node lets them; else as its node does")
    started_at: Moment
    ended_at: Moment | None = None
    exit_code: int | None = Field(None, description="negative: the signal; null: it runs, or nobody saw it end")
    reason: str = Field("", description="why it is not well")
    last_words: str = Field("", description="what the end of its log tells, of one that failed")


class LookAtEngines(Message):
    """Which engines were asked of this node, and how they are."""

    instance: InstanceName | None = Field(None, description="only of this one")


class HostedEngines(Message):
    node_id: Identifier
    boot_id: Identifier
    engines: tuple[HostedEngine, ...]


class ReadEngineLog(EngineKey):
    characters: int = Field(20_000, ge=1, le=MOST_LOG_CHARACTERS, description="so many from the end")


class EngineLog(EngineKey):
    text: str


START_ENGINE = Call(
    subject="compute.engines.start.v1",
    request=StartEngine,
    reply=HostedEngine,
    owner="node_agent",
    asked_by="vllm_orchestrator",
    summary="Start an engine on this node, once.",
    per_node=True,
)
STOP_ENGINE = Call(
    subject="compute.engines.stop.v1",
    request=StopEngine,
    reply=HostedEngines,
    owner="node_agent",
    asked_by="vllm_orchestrator",
    summary="End an engine on this node; answered at once, it may take its grace to end.",
    per_node=True,
)
LOOK_AT_ENGINES = Call(
    subject="compute.engines.look.v1",
    request=LookAtEngines,
    reply=HostedEngines,
    owner="node_agent",
    asked_by="vllm_orchestrator",
    summary="How the engines are that this node was asked to start.",
    per_node=True,
)
ENGINE_LOG = Call(
    subject="compute.engines.log.v1",
    request=ReadEngineLog,
    reply=EngineLog,
    owner="node_agent",
    asked_by="vllm_orchestrator",
    summary="The end of what an engine wrote.",
    per_node=True,
)
