"""What is said about a machine's GPUs and its memory: measured now, by whom it is used."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from libs.common.contracts.base import Call, Identifier, Message, Moment, Topic
from libs.common.contracts.node_registry import Gpu, Memory, Problem

MOST_MB = 1 << 26
MOST_GPUS = 1024
Amount = Annotated[int, Field(ge=0, le=MOST_MB)]


class GpuProcess(Message):
    """A process that uses a GPU. In a container the driver tells the machine's process ids, not the container's."""

    pid: int = Field(ge=0)
    kind: str = Field(examples=["compute", "graphics"])
    name: str | None = None
    used_mb: int | None = Field(None, ge=0)


class LedgerUse(Message):
    """A claim beside what its processes were seen to use, null where that is not told."""

    reservation_id: Identifier
    claim_mb: int = Field(ge=0)
    measured_mb: int | None = Field(None, ge=0)
    over_claim: bool = False


class Leak(Message):
    """A process that still uses a device, so long after its reservation ended."""

    pid: int = Field(ge=0)
    command: str = ""
    reservation_id: Identifier
    used_mb: int = Field(ge=0)
    age_seconds: float = Field(ge=0)


class LedgerEntry(Message):
    """One device in the ledger: free is the total without the driver's part, the margin, what is held and foreign."""

    total_mb: int | None = Field(None, ge=0)
    driver_mb: int = Field(0, ge=0, description="kept by the driver")
    margin_mb: int = Field(0, ge=0, description="given to nobody, for safety")
    claimed_mb: int = Field(0, ge=0)
    ours_mb: int | None = Field(None, ge=0, description="measured, of processes with a claim")
    held_mb: int = Field(0, ge=0, description="for each claim the larger of the claim and what is measured")
    foreign_mb: int = Field(0, ge=0, description="of processes without a claim, at their most of the last while")
    leaked_mb: int = Field(0, ge=0, description="of these, by processes that outlived their claim")
    free_mb: int | None = Field(None, ge=0, description="what more may be claimed; null: it cannot be known")
    attributed: bool = Field(True, description="false: use by process is not told, the difference of totals is used")
    problem: str | None = Field(None, description="why nothing of it is given at the moment")
    uses: tuple[LedgerUse, ...] = ()
    leaks: tuple[Leak, ...] = ()


class PressureLevel(StrEnum):
    """How near a device is to having nothing left. The order is from well to worst."""

    OK = "OK"
    ELEVATED = "ELEVATED"
    CRITICAL = "CRITICAL"


class Trend(Message):
    """Where its use is going: a band, from how well a line fits. Null seconds: no end is to be seen."""

    level: PressureLevel
    reason: str = ""
    mb_per_minute: float | None = Field(
        None, description="null: not known, since it fell within the last minute or went by steps"
    )
    exhausted_in_seconds: float | None = Field(None, ge=0)
    earliest_seconds: float | None = Field(None, ge=0)
    latest_seconds: float | None = Field(None, ge=0)


class GpuState(Message):
    """One GPU as it is now. `processes` is null when the driver does not tell them. `parts`: its MIG devices."""

    gpu: Gpu
    processes: tuple[GpuProcess, ...] | None = None
    ledger: LedgerEntry | None = None
    parts: dict[str, LedgerEntry] = {}
    trend: Trend | None = None


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
    ledger: LedgerEntry | None = None
    trend: Trend | None = None
    stalled_ratio: float | None = Field(
        None, ge=0, le=1, description="of the last 10 s, in which everything waited for memory; null: not told here"
    )


class Grower(Message):
    """A process that came to use more, and whose reservation it belongs to."""

    pid: int = Field(ge=0)
    command: str = ""
    reservation_id: Identifier | None = None
    grown_mb: int
    used_mb: int = Field(ge=0)


class Pressure(Message):
    """The level of a device, a GPU or `RAM`, when it changes, and again and again while it is not OK."""

    node_id: Identifier
    at: Moment
    device: str
    before: PressureLevel
    trend: Trend
    total_mb: int = Field(ge=0)
    used_mb: int = Field(ge=0)
    growers: tuple[Grower, ...] = Field((), description="that grew most, the first most of all")
    over_seconds: float = Field(0, ge=0, description="in how long they grew so much")


class HistoryPoint(Message):
    """`used_mb`: the most of its step. `free_mb`: what could still be claimed, at its least."""

    at: Moment
    used_mb: int = Field(ge=0)
    free_mb: int | None = Field(None, ge=0)


class DeviceHistory(Message):
    device: str
    total_mb: int | None = None
    step_seconds: float
    points: tuple[HistoryPoint, ...]


class MemoryHistory(Message):
    node_id: Identifier
    at: Moment
    memory: DeviceHistory


class GpuHistory(Message):
    node_id: Identifier
    at: Moment
    gpus: tuple[DeviceHistory, ...]


class ReservationState(StrEnum):
    HELD = "held"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"
    ENDED = "ended"


class FitQuestion(Message):
    """What is wanted: so much on each of some GPUs, and RAM. GPUs are named by index or UUID, or only counted."""

    required_mb: Amount = Field(0, description="on each GPU")
    gpu_count: Annotated[int, Field(ge=0, le=MOST_GPUS)] | None = Field(
        None, description="left out: as many as are named, else 1; with 0 only RAM is wanted"
    )
    gpu_indices: tuple[Annotated[int, Field(ge=0, le=MOST_GPUS)], ...] | None = Field(None, max_length=MOST_GPUS)
    gpu_uuids: tuple[Identifier, ...] | None = Field(None, max_length=MOST_GPUS)
    ram_mb: Amount = 0
    prefer_nvlink: bool = False
    node_id: Identifier | None = Field(None, description="another node is asked in your name; left out: this one")

    @model_validator(mode="after")
    def _names_one_thing(self) -> "FitQuestion":
        named = self.gpu_uuids if self.gpu_uuids is not None else self.gpu_indices
        if self.gpu_indices is not None and self.gpu_uuids is not None:
            raise ValueError("gpu_indices and gpu_uuids exclude each other")
        if named is not None and len(set(named)) != len(named):
            raise ValueError(f"gpu_{'uuids' if self.gpu_uuids is not None else 'indices'} names a GPU twice")
        if named is not None and self.gpu_count not in (None, len(named)):
            raise ValueError("gpu_count contradicts the number of named GPUs")
        if self.count > 0 and self.required_mb == 0:
            raise ValueError("required_mb must be at least 1 where a GPU is wanted")
        if self.count == 0 and (self.ram_mb == 0 or self.required_mb > 0):
            raise ValueError("ram_mb alone must be at least 1 where gpu_count is 0")
        return self

    @property
    def count(self) -> int:
        named = self.gpu_uuids if self.gpu_uuids is not None else self.gpu_indices
        return len(named) if named is not None else 1 if self.gpu_count is None else self.gpu_count


class ReserveRequest(FitQuestion):
    reservation_id: Identifier | None = Field(
        None, description="yours, so that a repeated request reserves once; left out: one is made"
    )
    timeout_seconds: float | None = Field(
        None, ge=1, le=86400, description="until it is committed; left out: GPU_RESERVATION_TIMEOUT"
    )
    owner: Annotated[str, Field(max_length=256)] = ""
    purpose: Annotated[str, Field(max_length=1024)] = ""


class Shortfall(Message):
    """What one device, a GPU or `RAM`, lacks, and what is in the way."""

    device: str
    free_mb: int | None = None
    missing_mb: int
    reason: str


class FitAnswer(Message):
    """`gpu_uuids` when it fits; otherwise what is in the way and the best that would fit."""

    fits: bool
    node_id: Identifier
    at: Moment
    gpu_uuids: tuple[str, ...] = ()
    gpu_indices: tuple[int, ...] = ()
    reason: str = ""
    shortfalls: tuple[Shortfall, ...] = ()
    would_fit_mb: int = Field(0, description="so much on each of as many GPUs would fit")
    would_fit_gpus: int = Field(0, description="on so many GPUs required_mb would fit")


class Reservation(Message):
    """Memory that is kept for somebody. `token` proves that it is yours: it only grows and is never used twice."""

    reservation_id: Identifier
    token: int = Field(ge=1)
    node_id: Identifier
    state: ReservationState
    gpu_uuids: tuple[str, ...] = ()
    gpu_indices: tuple[int, ...] = ()
    required_mb: int = Field(0, ge=0)
    ram_mb: int = Field(0, ge=0)
    owner: str = ""
    purpose: str = ""
    timeout_seconds: float
    expires_in_seconds: float | None = Field(None, description="null: it ends with its process, or has ended")
    reserved_at: Moment
    ended_at: Moment | None = None
    ended_reason: str | None = None
    pid: int | None = None
    container_id: str | None = None


class Reservations(Message):
    node_id: Identifier
    at: Moment
    copied: bool = Field(False, description="from the copy in NATS, as the node last told; it decides nothing")
    left_out: int = Field(0, ge=0, description="how many more there were than a copy holds")
    reservations: tuple[Reservation, ...]


Token = Annotated[int, Field(ge=1, le=2**63 - 1)]


class RenewBody(Message):
    token: Token | None = Field(None, description="left out: whoever knows the id may")
    timeout_seconds: float | None = Field(None, ge=1, le=86400, description="left out: as before")


class CommitBody(Message):
    """The process or container whose use it becomes, exactly one of them. It then ends with it, never by time."""

    token: Token | None = Field(None, description="left out: whoever knows the id may")
    pid: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    container_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")] | None = None

    @model_validator(mode="after")
    def _names_one(self) -> "CommitBody":
        if (self.pid is None) == (self.container_id is None):
            raise ValueError("exactly one of pid and container_id is wanted")
        return self


class Renew(RenewBody):
    reservation_id: Identifier


class Commit(CommitBody):
    reservation_id: Identifier


class Release(Message):
    reservation_id: Identifier
    token: Token | None = Field(None, description="left out: whoever knows the id may")


GPU_STATES = Topic(
    subject="compute.gpu.states.v1",
    message=GpuStates,
    owner="gpu_orchestrator",
    summary="Every GPU of a node as measured now, and which processes use it.",
)

PRESSURE = Topic(
    subject="compute.gpu.pressure.v1",
    message=Pressure,
    owner="gpu_orchestrator",
    summary="Memory of a GPU or of the machine runs out, or is well again, with who grew most.",
)

RESERVE = Call(
    subject="compute.gpu.reserve.v1",
    request=ReserveRequest,
    reply=Reservation,
    owner="gpu_orchestrator",
    summary="Keep memory of a node's GPUs and RAM: all that is wanted, or none.",
    per_node=True,
)
RENEW = Call(
    subject="compute.gpu.renew.v1",
    request=Renew,
    reply=Reservation,
    owner="gpu_orchestrator",
    summary="A reservation that is not committed yet lives on for its timeout.",
    per_node=True,
)
COMMIT = Call(
    subject="compute.gpu.commit.v1",
    request=Commit,
    reply=Reservation,
    owner="gpu_orchestrator",
    summary="A reservation becomes that of a process and ends with it.",
    per_node=True,
)
RELEASE = Call(
    subject="compute.gpu.release.v1",
    request=Release,
    reply=Reservation,
    owner="gpu_orchestrator",
    summary="A reservation is given back.",
    per_node=True,
)
CAN_FIT = Call(
    subject="compute.gpu.can_fit.v1",
    request=FitQuestion,
    reply=FitAnswer,
    owner="gpu_orchestrator",
    summary="Whether it would fit a node now, where, and if not what is in the way.",
    per_node=True,
)
