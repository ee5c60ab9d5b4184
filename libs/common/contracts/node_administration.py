"""What people and machines without a detector tell the registry."""

from typing import Annotated

from pydantic import Field

from libs.common.contracts.base import Call, Identifier, JsonObject, Message, Moment
from libs.common.contracts.node_registry import Cpu, GpuBeat, Memory, Mib, NodeState, Ratio


class DrainNode(Message):
    """Give a node nothing new, or let it have work again. Holds across restarts, also for a node not known yet."""

    node_id: Identifier
    draining: bool = True
    reason: Annotated[str, Field(max_length=512)] = ""


class DrainReason(Message):
    reason: Annotated[str, Field(max_length=512)] = ""


class NodeDrained(Message):
    """What was written. `known`: whether the node is known at present."""

    node_id: Identifier
    draining: bool
    reason: str = ""
    known: bool


class RegisteredGpu(Message):
    """A GPU as its owner tells it."""

    name: Annotated[str, Field(max_length=256)] = "GPU"
    uuid: Identifier | None = None
    vendor: Annotated[str, Field(max_length=64)] = "nvidia"
    vram_total_mb: Mib | None = None
    vram_free_mb: Mib | None = None
    compute_capability: Annotated[str, Field(max_length=32)] | None = None


class NodeRegistration(Message):
    """A machine that has no detector, told over REST. Only its id must be given."""

    node_id: Identifier
    hostname: Annotated[str, Field(max_length=256)] | None = None
    tier: Annotated[str, Field(max_length=32)] | None = Field(None, description="not given: by what its GPUs have")
    platform: Annotated[str, Field(max_length=32)] | None = None
    operating_system: Annotated[str, Field(max_length=256)] = "unknown"
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    gpus: tuple[RegisteredGpu, ...] = Field((), max_length=1024)
    labels: dict[str, str] = Field({}, max_length=64)
    heartbeat_seconds: float | None = Field(
        None, gt=0, le=3600, description="how often it will send heartbeats; not given: it stays for a setting's time"
    )


class RestHeartbeat(Message):
    """A heartbeat over REST, of a machine that cannot speak NATS."""

    load_ratio: Ratio | None = None
    memory_available_mb: Mib | None = None
    gpus: tuple[GpuBeat, ...] = Field((), max_length=1024)


class NodesCounted(Message):
    """The mesh in numbers. VRAM is that of GPUs that work, of nodes that are online."""

    nodes: int
    states: dict[str, int]
    tiers: dict[str, int]
    draining: int
    gpus: int
    vram_total_mb: int
    vram_free_mb: int
    mass_silence: bool = Field(description="more than half of the nodes are silent together: none is declared OFFLINE")
    nodes_most: int | None = Field(None, description="so many nodes are known at most")
    refused: int = Field(0, ge=0, description="announcements of further nodes that were refused")
    publishing: bool = Field(False, description="of several registries this one tells changes and writes the archive")
    archive_waiting: int = Field(0, ge=0, description="rows that are still to be written into the archive")


class NodeEvent(Message):
    """Something that happened to a node, as the archive keeps it."""

    event_id: Identifier
    node_id: Identifier
    at: Moment
    kind: str = Field(description="state, drain, restart or capabilities", examples=["state"])
    previous: NodeState | None = None
    state: NodeState | None = None
    reason: str
    boot_id: Identifier | None = None
    detail: JsonObject | None = Field(None, description="of `capabilities`: what was and what is")


class NodeHistory(Message):
    """What happened to a node, newest first."""

    events: tuple[NodeEvent, ...]
    next_after: str | None = Field(None, description="ask with `after` for the next page; null: this was the last")


DRAIN = Call(
    subject="compute.nodes.drain.v1",
    request=DrainNode,
    reply=NodeDrained,
    owner="node_registry",
    summary="Give a node nothing new, or let it have work again.",
)
