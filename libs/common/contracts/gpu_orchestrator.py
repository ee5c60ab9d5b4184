"""What is said about a machine's GPUs and its memory: measured now, by whom it is used."""

from pydantic import Field

from libs.common.contracts.base import Identifier, Message, Moment, Topic
from libs.common.contracts.node_registry import Gpu, Memory, Problem


class GpuProcess(Message):
    """A process that uses a GPU. In a container the driver tells the machine's process ids, not the container's."""

    pid: int = Field(ge=0)
    kind: str = Field(examples=["compute", "graphics"])
    name: str | None = None
    used_mb: int | None = Field(None, ge=0)


class GpuState(Message):
    """One GPU as it is now. `processes` is null when the driver does not tell them."""

    gpu: Gpu
    processes: tuple[GpuProcess, ...] | None = None


class GpuStates(Message):
    node_id: Identifier
    boot_id: Identifier
    at: Moment
    gpus: tuple[GpuState, ...]
    problems: tuple[Problem, ...] = ()


class GpuProcesses(Message):
    uuid: Identifier
    at: Moment
    processes: tuple[GpuProcess, ...] | None


class MemoryState(Message):
    """RAM and swap as they are now, as far as this machine or its container may use them."""

    node_id: Identifier
    at: Moment
    memory: Memory
    problems: tuple[Problem, ...] = ()


GPU_STATES = Topic(
    subject="compute.gpu.states.v1",
    message=GpuStates,
    owner="gpu_orchestrator",
    summary="Every GPU of a node as measured now, and which processes use it.",
)
