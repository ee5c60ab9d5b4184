"""What the instances of work marshaling say to one another: who leads, and what only the leader can answer."""

from typing import Literal

from pydantic import Field

from libs.common.contracts.base import Call, JsonObject, Message, Moment
from libs.common.contracts.lease import Holding


class Leader(Holding):
    """The lease of the instance that leads, renewed all the time: where it is, and why it takes nothing in."""

    node_id: str
    port: int = Field(ge=0, le=65535)
    epoch: int = Field(0, ge=0)
    problem: str | None = None


class LeaderAsked(Message):
    """Are you there? `asked_by` is the instance that stands by."""

    asked_by: str


class LeaderTold(Message):
    """I am. `epoch` is 0 for one that does not lead."""

    leads: bool
    epoch: int = Field(ge=0)


class FromLeader(Message):
    """What only the leader may tell a node. A node refuses it (`conflict`) when it has heard a higher epoch of the same
    log: its sender was replaced, and does not know it yet."""

    epoch: int = Field(0, ge=0, description="of the leader that sends this")
    log_made: Moment | None = Field(
        None, description="when the log was made in which this epoch counts; not given: nothing is compared"
    )


class HandedRequest(Message):
    """A request to the REST door of an instance that stands by. `path` and `query` are as they came."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    query: str = ""
    body: str = ""


class HandedAnswer(Message):
    """What the leader's REST door answers to it."""

    status: int = Field(ge=100, le=599)
    headers: dict[str, str] = {}
    body: str = ""


class HandedCall(Message):
    """A call over NATS that came to an instance that stands by: its subject, and what was asked."""

    subject: str
    request: JsonObject


class HandedReply(Message):
    """What the leader answers to it."""

    reply: JsonObject


LEADER = Call(
    subject="compute.work.leader.v1",
    request=LeaderAsked,
    reply=LeaderTold,
    owner="work_marshaling",
    asked_by="work_marshaling",
    summary="Is this instance there? Its id stands in the place of a node's.",
    per_node=True,
)
HAND_ON = Call(
    subject="compute.work.hand_on.v1",
    request=HandedRequest,
    reply=HandedAnswer,
    owner="work_marshaling",
    asked_by="work_marshaling",
    summary="A REST request that only the leader can answer. Its id stands in the place of a node's.",
    per_node=True,
)
HAND_ON_CALL = Call(
    subject="compute.work.hand_on_call.v1",
    request=HandedCall,
    reply=HandedReply,
    owner="work_marshaling",
    asked_by="work_marshaling",
    summary="A call that only the leader can answer. Its id stands in the place of a node's.",
    per_node=True,
)
