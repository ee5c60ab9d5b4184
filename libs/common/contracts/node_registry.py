"""What is said about machines: what they have, whether they are alive, what runs on them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from libs.common.contracts.base import MAX_INTEGER, Call, Identifier, Message, Moment, Topic

MIB_MOST = 2**40
"""An exbibyte: what claims more is a mistake, and sums of it would not fit an archive's integers."""
Mib = Annotated[int, Field(ge=0, le=MIB_MOST)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""What a machine has or does: more of anything is a mistake, and not every reader of JSON knows longer integers."""
Ratio = Annotated[float, Field(ge=0)]


class Tier(StrEnum):
    """What class of machine this is, from its best GPU. The order is from best to least."""

    AI_FACTORY = "AI_FACTORY"
    GPU_PEER = "GPU_PEER"
    GPU_INFRA = "GPU_INFRA"
    CPU_ONLY = "CPU_ONLY"


class Platform(StrEnum):
    CUDA = "CUDA"
    ROCM = "ROCM"
    METAL = "METAL"
    CPU_ONLY = "CPU_ONLY"


class NodeState(StrEnum):
    ONLINE = "ONLINE"
    SUSPECT = "SUSPECT"
    OFFLINE = "OFFLINE"


class Cpu(Message):
    model: str | None = None
    architecture: str | None = None
    cores: Count | None = Field(None, description="physical cores")
    threads: Count | None = Field(None, description="logical processors this machine, or its container, may use")
    frequency_mhz: float | None = Field(None, ge=0)
    flags: tuple[str, ...] = ()


class Memory(Message):
    total_mb: Mib | None = Field(None, description="what this machine, or its container, may use")
    available_mb: Mib | None = Field(None, description="what more of it may be used now without swapping")
    swap_total_mb: Mib | None = None
    swap_free_mb: Mib | None = None
    limit_mb: Mib | None = Field(None, description="the cgroup's limit, where there is one")


class MigDevice(Message):
    """A part of a GPU that is used like a GPU of its own."""

    uuid: Identifier
    name: str
    vram_total_mb: Mib | None = None
    vram_free_mb: Mib | None = None


class Gpu(Message):
    """One GPU. Known by `uuid`; `index` is only a display name. What cannot be known is null, never a guess."""

    uuid: Identifier
    index: Count
    name: str
    vendor: str
    vram_total_mb: Mib | None = None
    vram_used_mb: Mib | None = None
    vram_free_mb: Mib | None = None
    vram_reserved_mb: Mib | None = Field(None, description="kept by the driver, for nobody's use")
    compute_capability: str | None = Field(None, examples=["9.0"])
    pci_address: str | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    utilization_ratio: Ratio | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    thermal_slowdown: bool | None = Field(None, description="its hardware slows it down, because it is too hot")
    ecc_enabled: bool | None = None
    ecc_uncorrected_errors: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(
        None, description="since it was made"
    )
    retired_pages: Count | None = Field(None, description="pages of memory taken out of use, for errors")
    mig_devices: tuple[MigDevice, ...] = Field((), description="when it is divided: only its parts can be used")
    unified_memory: bool = False
    healthy: bool = True
    problem: str | None = None


class GpuLink(Message):
    """How two GPUs of a machine are connected."""

    first: Identifier
    second: Identifier
    path: str | None = Field(
        None, description="INTERNAL, PIX, PXB, PHB, NODE or SYS: what lies between them on the PCI bus, near to far"
    )
    nvlinks: Count = Field(0, description="direct, or to the switch that they share")
    peer_access: bool | None = Field(None, description="whether one may read the other's memory over NVLink")


class Disk(Message):
    path: str
    total_mb: Mib
    free_mb: Mib


class NetworkAddress(Message):
    interface: str
    address: str
    speed_mbps: Count | None = None


class Problem(Message):
    """Something that could not be read, and why. It cost one field, not the answer."""

    source: str
    message: str


class Inventory(Message):
    """What a machine has, measured."""

    hostname: str
    platform: Platform
    operating_system: str
    container: bool = False
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    gpus: tuple[Gpu, ...] = ()
    gpu_links: tuple[GpuLink, ...] = ()
    disks: tuple[Disk, ...] = ()
    network: tuple[NetworkAddress, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    problems: tuple[Problem, ...] = ()


class PlatformFacts(Message):
    """On what programs run here."""

    hostname: str
    platform: Platform
    operating_system: str
    container: bool
    driver_version: str | None = None
    cuda_version: str | None = None
    problems: tuple[Problem, ...] = ()


class TierVerdict(Message):
    tier: Tier
    reasons: tuple[str, ...]


class NodeAnnounced(Message):
    """Full capabilities of a node."""

    node_id: Identifier
    boot_id: Identifier
    at: Moment
    tier: Tier
    tier_reasons: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    inventory: Inventory
    heartbeat_seconds: float = Field(5.0, gt=0, le=3600)


class GpuBeat(Message):
    uuid: Identifier
    vram_free_mb: Mib | None = None
    utilization_ratio: Ratio | None = None
    temperature_celsius: float | None = None
    healthy: bool = True


class NodeHeartbeat(Message):
    """Alive, with what changes all the time. `sequence` starts at 1 with each boot id."""

    node_id: Identifier
    boot_id: Identifier
    sequence: Annotated[int, Field(ge=1, le=MAX_INTEGER)]
    at: Moment
    load_ratio: Ratio | None = Field(None, description="one-minute load average over logical processors")
    memory_available_mb: Mib | None = None
    gpus: tuple[GpuBeat, ...] = ()


class Discover(Message):
    """Announce yourselves now."""

    asked_by: str


class EngineState(StrEnum):
    STARTING = "STARTING"
    READY = "READY"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class Engine(Message):
    """An inference engine on a machine, and what it serves."""

    engine_id: Identifier
    kind: str = Field(examples=["llama.cpp"])
    model_name: str
    test_model: bool = Field(False, description="random weights made on the spot: it answers nonsense")
    state: EngineState
    device: str = Field(examples=["cpu", "cuda"])
    device_reason: str = Field("", description="why this device, and on a machine with a GPU why not the GPU")
    url: str | None = Field(None, description="as its own machine reaches it")
    far_url: str | None = Field(
        None, description="as other machines reach one that was deployed, where its node lets them"
    )
    slots: Count = Field(0, description="requests it serves at once")
    context_tokens: Count | None = None
    problem: str | None = None


class SlotPool(Message):
    """Slots that some kinds of work share: those of an engine, or those for functions."""

    work_types: tuple[str, ...]
    slots: Count
    free_slots: Count


class NodeWorkload(Message):
    """What runs on a node and how much more it would take."""

    node_id: Identifier
    boot_id: Identifier
    at: Moment
    slots: Count
    free_slots: Count
    work_types: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ()
    running: tuple[str, ...] = Field((), description="attempt tokens")
    draining: bool = False
    pools: tuple[SlotPool, ...] = Field((), description="the same slots by the kinds of work that share them")


class NodeView(Message):
    """A node as the registry believes it to be, and since when."""

    node_id: Identifier
    state: NodeState
    state_reason: str = ""
    tier: Tier
    tier_reasons: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    inventory: Inventory
    boot_id: Identifier
    announced_at: Moment
    last_heartbeat_seconds_ago: float | None = None
    load_ratio: float | None = None
    memory_available_mb: Mib | None = None
    gpus: tuple[GpuBeat, ...] = ()
    engines: tuple[Engine, ...] = ()
    slots: int = 0
    free_slots: int = 0
    conflict: str | None = Field(None, description="two machines use this id: what was noticed")
    draining: bool = Field(False, description="it is to get nothing new")
    draining_reason: str = ""


Words = Annotated[str, Field(min_length=1, max_length=256)]


class Demands(Message):
    """What a machine must have. Every field that is given must hold. Names of tiers and platforms: in any case."""

    requires_gpu: bool | None = Field(None, description="true: at least one GPU that works")
    tier: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="exactly this tier", examples=["GPU_PEER"]
    )
    min_tier: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="this tier or better", examples=["GPU_PEER"]
    )
    node_ids: tuple[Identifier, ...] | None = Field(None, max_length=1000, description="only these nodes")
    platform: Annotated[str, Field(max_length=32)] | None = Field(None, examples=["CUDA"])
    labels: dict[str, str] = Field({}, max_length=64, description="each must be there with this value")
    gpu_model: Words | None = Field(None, description="part of the GPU's name, in any case")
    compute_capability: Words | None = Field(None, description="at least this, such as 8.0; or exactly, such as gfx942")
    min_gpu_count: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None, description="so many GPUs that satisfy every clause about GPUs"
    )
    min_vram_mb_per_gpu: Mib | None = Field(None, description="usable on each of these GPUs")
    min_free_vram_mb: Mib | None = Field(None, description="free now on each of these GPUs")
    min_total_vram_mb: Mib | None = Field(None, description="usable on all GPUs together")
    min_ram_mb: Mib | None = None
    min_cpu_threads: Count | None = None


class NodeQuery(Demands):
    """Which nodes match. Every field that is given must hold. Tier, platform and state names: in any case."""

    online_only: bool = False
    states: tuple[Annotated[str, Field(max_length=32)], ...] | None = Field(None, max_length=16)
    draining: bool | None = Field(None, description="false: only nodes that may get something new")
    model_name: Words | None = Field(None, description="loaded there, ready")
    limit: int = Field(100, ge=1, le=1000)
    after: Identifier | None = Field(None, description="`next_after` of the page before; only in the order of ids")
    sort: Annotated[str, Field(max_length=32)] = Field(
        "node_id",
        description="node_id, tier, load_ratio, free_ram_mb, free_vram_mb or free_slots; with `-` before it downwards",
    )
    explain: bool = Field(False, description="also say of every other node why it does not match")


class NodeExcluded(Message):
    node_id: Identifier
    reasons: tuple[str, ...]


class NodesFound(Message):
    nodes: tuple[NodeView, ...]
    total: int = Field(description="how many match, also beyond the limit")
    next_after: str | None = Field(None, description="ask with `after` for the next page; null: this was the last")
    excluded: tuple[NodeExcluded, ...] | None = Field(None, description="with `explain`")


class NodeStatus(Message):
    """A node's state changed, or whether it is draining, and why."""

    node_id: Identifier
    state: NodeState
    previous: NodeState | None
    reason: str
    at: Moment
    draining: bool = False
    boot_id: Identifier | None = None
    event_id: Identifier | None = Field(None, description="the same in the node's history")
    told_by: Identifier | None = Field(None, description="which of several registries tells it")


ANNOUNCE = Topic(
    subject="compute.nodes.announce.v1",
    message=NodeAnnounced,
    owner="resource_detector",
    heard_by="node_registry",
    summary="Full capabilities of a node: at start, on change, every minute and when asked.",
)
HEARTBEAT = Topic(
    subject="compute.nodes.heartbeat.v1",
    message=NodeHeartbeat,
    owner="resource_detector",
    heard_by="node_registry",
    summary="A node is alive: load, free memory, sequence number.",
)
WORKLOAD = Topic(
    subject="compute.nodes.workload.v1",
    message=NodeWorkload,
    owner="node_agent",
    heard_by="node_registry, work_marshaling, vllm_orchestrator",
    summary="Engines, loaded models, free slots and running attempts of a node.",
)
DISCOVER = Topic(
    subject="compute.nodes.discover.v1",
    message=Discover,
    owner="node_registry",
    heard_by="resource_detector, node_agent",
    summary="Asks detectors and agents to announce themselves now.",
)
STATUS = Topic(
    subject="compute.nodes.status.v1",
    message=NodeStatus,
    owner="node_registry",
    summary="A node's state changed, and why.",
)
QUERY = Call(
    subject="compute.nodes.query.v1",
    request=NodeQuery,
    reply=NodesFound,
    owner="node_registry",
    summary="Which nodes match.",
)
