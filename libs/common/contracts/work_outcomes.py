"""Outcomes that are told together."""

from pydantic import Field

from libs.common.contracts.base import Message, Topic
from libs.common.contracts.work_marshaling import WorkCompleted


class WorkOutcomes(Message):
    """Attempts of one node that succeeded at about the same moment, each as it would be told alone: one write to the
    disk carries them all. Small results only."""

    completed: tuple[WorkCompleted, ...] = Field(min_length=1, max_length=1000)


OUTCOMES = Topic(
    subject="compute.work.outcomes.v1",
    message=WorkOutcomes,
    owner="node_agent",
    heard_by="work_marshaling",
    summary="Several attempts succeeded; carries their results.",
    stream="WORK_OUT",
)
