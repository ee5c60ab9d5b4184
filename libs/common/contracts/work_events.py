"""What is told of one item while it is followed, and what is asked to run it again."""

from typing import Annotated

from pydantic import Field, StringConstraints

from libs.common.contracts.base import Message
from libs.common.contracts.work_marshaling import WorkId


class ItemProgress(Message):
    """Its worker goes on. `text` is partial output since the last event."""

    work_id: str
    attempt: int = Field(ge=1)
    node_id: str
    fraction: float | None = Field(None, ge=0, le=1)
    text: str | None = None


class EventsLost(Message):
    """The reader was too slow, or the text too much: so many events were dropped before this one."""

    events: int = Field(ge=1)


class RunAgain(Message):
    """How to run an ended item again. With a `work_id` the request may be repeated, and still makes one item."""

    work_id: WorkId | None = None
    submitter: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        None, description="who asks; as before when it is left out"
    )
