"""Everything that can be asked of the vLLM orchestrator over NATS, in the words of its REST routes."""

from typing import Annotated

from pydantic import Field

from libs.common.contracts.base import Call, Message
from libs.common.contracts.engine_hosting import MOST_DRAIN_SECONDS, MOST_LOG_CHARACTERS, InstanceName
from libs.common.contracts.vllm_instances import (
    ComposeFile,
    DeployRequest,
    InstanceEvents,
    InstanceLog,
    InstancesFound,
    InstanceView,
)
from libs.common.contracts.vllm_orchestrator import FittingModels, PlanAnswer, PlanRequest, Strategies


class OneInstance(Message):
    """Which instance."""

    instance_name: InstanceName


class EndInstance(OneInstance):
    """Which instance is to be ended, or ended and started anew."""

    drain_seconds: Annotated[float, Field(ge=0, le=MOST_DRAIN_SECONDS)] | None = Field(
        None, description="that requests in hand may take; left out: as it was deployed"
    )


class OnePart(OneInstance):
    """Which process of an instance."""

    replica: Annotated[int, Field(ge=0, le=2**31)] | None = Field(None, description="left out: its first")
    rank: int = Field(0, ge=0, le=1000)


class ReadInstanceLog(OnePart):
    """The end of what a process wrote."""

    characters: int = Field(20_000, ge=1, le=MOST_LOG_CHARACTERS)


class WhatFits(Message):
    """Which models of the catalogue fit now."""

    max_model_len: int = Field(8192, ge=1, le=2**31)
    concurrency: float = Field(1.0, ge=1, le=1_000_000)


class Everything(Message):
    """All there are; nothing more needs to be said."""


class VllmRequest(PlanRequest):
    """One question: a plan by its own fields, anything else in the field of that name."""

    deploy: DeployRequest | None = None
    delete: EndInstance | None = None
    restart: EndInstance | None = None
    instances: Everything | None = None
    instance: OneInstance | None = None
    events: OneInstance | None = None
    logs: ReadInstanceLog | None = None
    compose: OnePart | None = None
    models: WhatFits | None = None
    strategies: Everything | None = None

    def _asks_for_something(self) -> None:
        asked = [name for name in QUESTIONS if getattr(self, name) is not None]
        plan = self.model_name is not None or self.configuration is not None
        if len(asked) + plan > 1:
            raise ValueError(f"one question at a time, not {', '.join([*asked, *(['a plan'] if plan else [])])}")
        if not asked:
            super()._asks_for_something()


QUESTIONS = tuple(name for name in VllmRequest.model_fields if name not in PlanRequest.model_fields)


class VllmReply(PlanAnswer):
    """To a plan its answer; to anything else only the one field that REST would answer with."""

    fits: bool = False
    instance: InstanceView | None = Field(None, description="to deploy, delete, restart and instance")
    instances: InstancesFound | None = None
    events: InstanceEvents | None = None
    logs: InstanceLog | None = None
    compose: ComposeFile | None = None
    models: FittingModels | None = None
    strategies: Strategies | None = None


VLLM_REQUEST = Call(
    subject="compute.vllm.request.v1",
    request=VllmRequest,
    reply=VllmReply,
    owner="vllm_orchestrator",
    summary="Plan, deploy, look at, restart and delete instances: what REST does, with the same words.",
)
VLLM_LEADER = Call(
    subject="compute.vllm.leader.v1",
    request=VllmRequest,
    reply=VllmReply,
    owner="vllm_orchestrator",
    asked_by="vllm_orchestrator",
    summary="The same, passed on to the orchestrator that looks after instances now.",
    per_node=True,
)
