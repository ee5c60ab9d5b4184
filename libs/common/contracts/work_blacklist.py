"""The blacklist of work marshaling: nodes that fail too often to be given work."""

from typing import Annotated, Literal

from pydantic import Field

from libs.common.contracts.base import Identifier, Message, Moment, Topic


class BlacklistEntry(Message):
    """A node, or (with `model_name`) a node as far as this model goes. `listed` is false while it is on parole."""

    node_id: Identifier
    model_name: str | None = None
    listed: bool
    since: Moment
    until: Moment | None = Field(None, description="when its parole begins; null: when somebody takes it off")
    reason: str
    failure_rate: float | None = Field(None, description="the lower bound that led to it")
    strikes: int = Field(description="how often it was listed by now")
    by: Literal["rate", "term", "operator"]


class Blacklist(Message):
    """Who is listed, and who is on parole."""

    entries: tuple[BlacklistEntry, ...]


class BlacklistNode(Message):
    """Why a node is to get nothing, and for how long."""

    reason: Annotated[str, Field(max_length=512)] = "set by an operator"
    seconds: float | None = Field(None, gt=0, le=365 * 86400, description="null: until somebody takes it off")


BLACKLIST = Topic(
    subject="compute.work.blacklist.v1",
    message=BlacklistEntry,
    owner="work_marshaling",
    summary="A node was blacklisted, or is on parole.",
)
