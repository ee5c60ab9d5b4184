"""Deployments: models that are to be served, and what became of them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from libs.common.contracts.base import Identifier, JsonObject, Message, Moment, Topic
from libs.common.contracts.engine_hosting import MOST_DRAIN_SECONDS, EngineKey, EngineProgram, ImageName, InstanceName
from libs.common.contracts.log import LogEpoch, LogRecord
from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.vllm_orchestrator import ExecutorBackend, PlanRequest

MOST_RAM_MB = 1 << 26
MOST_EVENTS = 100
MOST_REPLICAS = 64


class InstanceState(StrEnum):
    """Of an instance and of each of its replicas. PLANNED: it waits for a place. RESERVED: memory is kept for it.
    READY: it serves, with every replica. DEGRADED: it serves, but something is wrong, or not every replica does.
    FAILED: given up, with a reason; a restart or a changed deploy tries again."""

    PLANNED = "PLANNED"
    RESERVED = "RESERVED"
    STARTING = "STARTING"
    READY = "READY"
    DEGRADED = "DEGRADED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class EngineChoice(StrEnum):
    """What serves a model. `external`: an engine that somebody else runs; it is watched, never started or ended."""

    VLLM = EngineProgram.VLLM.value
    LLAMA = EngineProgram.LLAMA.value
    EXTERNAL = "external"


class RestartPolicy(StrEnum):
    ALWAYS = "always"
    NEVER = "never"


class EngineRuntime(StrEnum):
    """What vLLM runs in. `container`: one of Docker's, on nodes whose owners let engines do so."""

    PROCESS = "process"
    CONTAINER = "container"


class DeployRequest(PlanRequest):
    """A model that is to be served, and how. The same again changes nothing; another under that name takes its place
    replica by replica, each of the old ones ending when a new one serves, or before where there is no room for both."""

    instance_name: InstanceName
    engine: EngineChoice = EngineChoice.VLLM
    auto_start: bool = Field(True, description="false: only write it down; a restart starts it")
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    node_ids: tuple[Identifier, ...] | None = Field(None, max_length=1000, description="only on these nodes")
    model_path: Annotated[str, Field(pattern=r"^/[^\x00]{1,1023}$")] | None = Field(
        None,
        examples=["/models/qwen.gguf"],
        description="with llama.cpp: the GGUF file on the machine; left out: the test model",
    )
    drain_seconds: Annotated[float, Field(ge=0, le=MOST_DRAIN_SECONDS)] | None = Field(
        None, description="how long requests in hand may take when an engine of it is ended; left out: a setting's"
    )
    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$", max_length=1024)] | None = Field(
        None,
        examples=["http://192.0.2.1:8000"],
        description="with external: where it has OpenAI's interface, as this orchestrator and clients reach it",
    )
    runtime: EngineRuntime = EngineRuntime.PROCESS
    image: ImageName | None = Field(
        None, description="with runtime container; left out: the vLLM project's, of the version that is planned"
    )
    ram_mb: Annotated[int, Field(ge=1, le=MOST_RAM_MB)] | None = Field(
        None,
        description="with llama.cpp: what it may take: the file, its context, and some; left out: as the file's header "
        "says, which must be in the orchestrator's folder of models too",
    )

    @model_validator(mode="after")
    def _can_be_deployed(self) -> "DeployRequest":
        if self.model_name is None:
            raise ValueError("model_name is wanted: what is deployed must be known by a name")
        if self.nodes is not None:
            raise ValueError("nodes cannot be given: deployments go to machines that the registry knows; see node_ids")
        if self.replicas is not None and self.replicas > MOST_REPLICAS:
            raise ValueError(f"replicas must be at most {MOST_REPLICAS} for one instance, not {self.replicas}")
        if (self.engine is EngineChoice.EXTERNAL) != (self.url is not None):
            raise ValueError("url is wanted with engine external, and with no other")
        if self.engine is EngineChoice.EXTERNAL and self.replicas not in (None, 1):
            raise ValueError("replicas must be 1 with engine external: each has an address of its own")
        if self.engine is not EngineChoice.LLAMA and (self.model_path or self.ram_mb):
            raise ValueError("model_path and ram_mb are for llama.cpp: what vLLM needs is planned")
        return self

    @model_validator(mode="after")
    def _can_be_contained(self) -> "DeployRequest":
        if self.runtime is EngineRuntime.PROCESS and self.image is not None:
            raise ValueError("image is for runtime container: a process runs what its node has")
        if self.runtime is EngineRuntime.CONTAINER:
            if self.engine is not EngineChoice.VLLM:
                raise ValueError("runtime container is for engine vllm")
            if self.distributed_executor_backend is ExecutorBackend.RAY:
                raise ValueError("runtime container does not go with distributed_executor_backend ray: leave one out")
        return self


class Claim(Message):
    """Memory of one reservation: so much on each of these GPUs, and RAM."""

    reservation_id: Identifier
    node_id: Identifier
    token: int | None = None
    gpu_uuids: tuple[str, ...] = ()
    required_mb: int = 0
    ram_mb: int = 0


class InstancePart(Message):
    """One process of a replica, and the memory it claims on its node. GPUs that take unlike amounts are claimed apart:
    `required_mb` is on each of those that `more` does not name."""

    rank: int
    node_id: Identifier
    arguments: tuple[str, ...]
    image: str = Field("", description="of the container that it runs in; empty: a process of the machine")
    ray: tuple[str, ...] = Field((), description="arguments of `ray`, which is started before")
    environment: dict[str, str] = {}
    gpu_uuids: tuple[str, ...] = ()
    required_mb: int = 0
    ram_mb: int = 0
    reservation_id: Identifier
    token: int | None = None
    more: tuple[Claim, ...] = ()

    @property
    def serves(self) -> bool:
        """The first node's process takes requests, the others compute for it."""
        return self.rank == 0

    @property
    def claims(self) -> tuple[Claim, ...]:
        apart = {uuid for claim in self.more for uuid in claim.gpu_uuids}
        first = Claim(
            reservation_id=self.reservation_id,
            node_id=self.node_id,
            token=self.token,
            gpu_uuids=tuple(uuid for uuid in self.gpu_uuids if uuid not in apart),
            required_mb=self.required_mb,
            ram_mb=self.ram_mb,
        )
        return (first, *self.more)

    def holding(self, tokens: Mapping[str, int]) -> "InstancePart":
        """The same with the tokens of its reservations."""
        more = tuple(claim.model_copy(update={"token": tokens[claim.reservation_id]}) for claim in self.more)
        return self.model_copy(update={"token": tokens[self.reservation_id], "more": more})


class Eased(Message):
    """What is asked of an engine less than was wanted, because it ran out of memory. Null: as wanted."""

    max_num_seqs: int | None = None
    max_model_len: int | None = None


class Replica(Message):
    """One engine of an instance as the log keeps it. `number` is not given again while the instance is there;
    `generation` grows with each start of any of them. `lost`: nodes it failed on."""

    number: int = Field(0, ge=0)
    request: DeployRequest = Field(examples=[{"model_name": "tiny-llama", "instance_name": "tiny"}])
    wanted: Literal["running", "gone"] = "running"
    state: InstanceState = InstanceState.PLANNED
    reason: str = ""
    generation: int = 0
    strategy: str | None = None
    slots: int = 1
    context_tokens: int | None = None
    parts: tuple[InstancePart, ...] = ()
    failures: int = Field(0, description="in a row, since it last served for a while")
    failure: str = Field("", description="what kind its last failure was", examples=["oom_at_load"])
    not_before: Moment | None = Field(None, description="when the next start is tried at the earliest")
    given_up: bool = Field(False, description="it is not tried again by itself")
    drain_seconds: float = Field(0.0, description="that requests in hand may take when it is ended")
    crowded: int = Field(0, description="so often in a row there was no room for it")
    eased: Eased = Eased()
    lost: tuple[str, ...] = ()
    since: Moment = Field(description="since when it is in this state")


class Instance(Message):
    """An instance as the log keeps it: what is wanted, and the replicas there are, outdated ones too."""

    name: InstanceName
    request: DeployRequest = Field(examples=[{"model_name": "tiny-llama", "instance_name": "tiny"}])
    wanted: Literal["running", "stopped", "gone"] = "running"
    count: int = Field(1, ge=1, le=MOST_REPLICAS, description="replicas that are wanted")
    drain_seconds: float = Field(0.0, description="that requests in hand may take when a replica is ended")
    state: InstanceState = InstanceState.PLANNED
    reason: str = ""
    generation: int = Field(0, description="of the latest start of any replica")
    numbers: int = Field(0, description="replicas it ever had")
    replicas: tuple[Replica, ...] = ()
    created_at: Moment
    since: Moment = Field(description="since when it is in this state")


class InstanceEvent(Message):
    name: InstanceName
    at: Moment
    generation: int
    state: InstanceState
    message: str
    replica: int | None = Field(None, description="which of its replicas; null: the instance as a whole")


class PartView(Message):
    """One process of an instance as its node's agent tells it; null: that has not been told."""

    replica: int = 0
    rank: int
    node_id: str
    gpu_uuids: tuple[str, ...] = ()
    required_mb: int = 0
    ram_mb: int = 0
    state: EngineState | None = None
    pid: int | None = None
    url: str | None = None


class ReplicaView(Message):
    """One engine of an instance. `problem` says why it is not READY."""

    number: int
    state: InstanceState
    outdated: bool = Field(False, description="of an earlier deployment: it serves until a new one does")
    problem: str = ""
    generation: int
    strategy: str | None = None
    failures: int = 0
    failure: str = Field("", description="what kind the last one was, as long as they are in a row")
    not_before: Moment | None = None
    eased: Eased = Eased()
    since: Moment


class InstanceView(Message):
    """An instance as it is. `problem` says why it is not READY, or what is going on."""

    model_config = ConfigDict(serialize_by_alias=True)

    instance_name: str
    model_name: str
    engine: EngineChoice
    state: InstanceState
    wanted: str
    problem: str = ""
    generation: int
    count: int = Field(1, description="replicas that are wanted")
    replicas: tuple[ReplicaView, ...] = ()
    parts: tuple[PartView, ...] = Field((), description="the processes of all replicas")
    urls: tuple[str, ...] = Field((), description="of the replicas that serve, as their nodes tell others")
    created_at: Moment
    since: Moment
    request: DeployRequest


class InstancesFound(Message):
    instances: tuple[InstanceView, ...]


class InstanceEvents(Message):
    """What happened to an instance, the latest last."""

    events: tuple[InstanceEvent, ...]


class InstanceLog(Message):
    instance_name: str
    replica: int = 0
    rank: int
    node_id: str
    text: str


class ComposeFile(Message):
    """A file for Docker Compose, which reads JSON as it reads YAML: start what this node would have."""

    version: str = Field(description="Docker Compose v1.29 reads it, v2 passes it over.")
    services: dict[str, JsonObject]
    volumes: dict[str, JsonObject] = Field(description="Where weights that were downloaded are kept between starts.")


class KeptTerms(Message):
    """The estimated terms of one GPU; null: not told."""

    activation_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    non_torch_bytes: int | None = None


class KeptStart(Message):
    """A start of vLLM as it was predicted without corrections, and as its log told it. `version` is vLLM's."""

    start: str = Field(description="the instance, its replica and generation: each start is kept once")
    model_name: str
    at: Moment
    architecture: str
    quantisation: str
    version: str = Field(pattern=r"^\d+\.\d+$", examples=["0.33"])
    gpu: str
    together: bool = Field(description="on several GPUs")
    predicted: KeptTerms
    measured: KeptTerms


class KeptStarts(Message):
    """What corrects plans, the latest first."""

    starts: tuple[KeptStart, ...]


class GatewayProvider(Message):
    """A replica of an instance that a gateway routes its model's requests to."""

    model_name: str
    instance_name: str
    replica: int = 0
    address: str


class GatewayView(Message):
    """What a TensorZero gateway was told of the instances, and what stands in the way of telling it."""

    configured: bool = Field(description="TENSORZERO_FOLDER is set")
    providers: tuple[GatewayProvider, ...] = Field((), description="as they were taken last")
    left_out: tuple[str, ...] = Field((), description="instances that no gateway can route to, and why")
    complaints: tuple[str, ...] = Field((), description="what a gateway would not start with, and in which file")
    problem: str = Field("", description="why the last change was not taken as it is")
    checked_by: str = ""
    changed_at: Moment | None = None


class Stranded(EngineKey):
    """A process on a node that was given up. Should the node come back, it is ended."""

    node_id: Identifier
    reservation_id: Identifier


class VllmRecord(LogRecord):
    """What was decided: instances as they are from here on, those that are no more, and what is told of them."""

    kept: tuple[Instance, ...] = ()
    gone: tuple[str, ...] = ()
    events: tuple[InstanceEvent, ...] = ()
    stranded: tuple[Stranded, ...] = ()
    settled: tuple[Identifier, ...] = Field((), description="reservations of stranded ones that are no more")
    generations: dict[InstanceName, int] = Field(
        {}, description="of those that are no more: one of the same name goes on counting, as agents remember theirs"
    )


VLLM_EPOCH = Topic(
    subject="compute.vllm.epoch.v1",
    message=LogEpoch,
    owner="vllm_orchestrator",
    summary="Who writes the log of instances from here on.",
    stream="VLLM_LOG",
)
VLLM_RECORD = Topic(
    subject="compute.vllm.log.v1",
    message=VllmRecord,
    owner="vllm_orchestrator",
    summary="What was decided about instances.",
    stream="VLLM_LOG",
)
