"""Why an item still waits: what excludes each node, and what would have to change."""

from pydantic import Field

from libs.common.contracts.base import Call, Message
from libs.common.contracts.work_marshaling import WorkLookup, WorkStatus


class Exclusion(Message):
    """One clause that a node does not satisfy."""

    clause: str = Field(description="the name of the requirement, or what else it is about", examples=["ram_mb"])
    reason: str
    passing: bool = Field(description="waiting may help: it is about what is free, or heard, at the moment")
    enough: int | None = Field(None, description="the value of the requirement that this node would satisfy")


class NodeExplained(Message):
    """A node, and what keeps the item from it. Nothing does: it takes the item when its turn comes."""

    node_id: str
    excluded_by: tuple[Exclusion, ...] = ()


class SmallestChange(Message):
    """What would let the item run, on the node that lacks least."""

    node_id: str
    changes: tuple[str, ...]


class WorkExplained(Message):
    """Why an item is where it is. Computed by the code that decides, at the moment of asking."""

    work_id: str
    status: WorkStatus
    why: str
    priority: int
    effective_priority: int | None = Field(None, description="with what waiting has improved; null: it is not queued")
    waited_seconds: float | None = Field(None, description="since it could have run")
    position: int | None = Field(None, description="1 is next; estimated: submitters take turns")
    queued: int = Field(description="items that may run now, this one included")
    unsatisfiable_now: str | None = Field(None, description="why no node that is known could ever run it")
    nodes: tuple[NodeExplained, ...] = Field((), description="the nearest first, 200 at most")
    nodes_known: int = 0
    smallest_change: SmallestChange | None = None


EXPLAIN = Call(
    subject="compute.work.explain.v1",
    request=WorkLookup,
    reply=WorkExplained,
    owner="work_marshaling",
    summary="Why an item still waits: each node and the clause that excludes it.",
)
