"""Questions over NATS: each goes to the method that its REST route has, or to the orchestrator that leads."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from libs.common.bus.bus import Bus
from libs.common.contracts.base import Message, Written
from libs.common.contracts.vllm_requests import QUESTIONS, VLLM_LEADER, VllmReply, VllmRequest
from services.vllm_orchestrator.deployments import Deployments
from services.vllm_orchestrator.keeping import Keeping
from services.vllm_orchestrator.planning import Planning

OF_ANYBODY = frozenset({"models", "strategies"})
PASSED_ON_SECONDS = 30.0


class Requests:
    def __init__(self, bus: Bus, planning: Planning, deployments: Deployments, keeping: Keeping) -> None:
        self._bus = bus
        self._planning = planning
        self._keeping = keeping
        does, plans = deployments, planning
        self._answers: Mapping[str, tuple[str, Callable[[Any], Awaitable[Message]]]] = {
            "deploy": ("instance", does.deploy),
            "delete": ("instance", lambda asked: does.delete(asked.instance_name, asked.drain_seconds)),
            "restart": ("instance", lambda asked: does.restart(asked.instance_name, asked.drain_seconds)),
            "instances": ("instances", lambda _: does.all()),
            "instance": ("instance", lambda asked: does.one(asked.instance_name)),
            "events": ("events", lambda asked: does.events(asked.instance_name)),
            "logs": ("logs", lambda asked: does.log(asked.instance_name, asked.replica, asked.rank, asked.characters)),
            "compose": ("compose", lambda asked: does.compose(asked.instance_name, asked.replica, asked.rank)),
            "models": ("models", lambda asked: plans.fitting(asked.max_model_len, asked.concurrency)),
            "strategies": ("strategies", lambda _: plans.strategies()),
        }

    async def answer(self, asked: VllmRequest) -> VllmReply | Written[VllmReply]:
        """Raises what the method for it raises, `Unavailable` while nobody leads."""
        leader = self._keeping.leader()
        if leader is not None and not OF_ANYBODY.issuperset(_named(asked)):
            return await self._bus.request(VLLM_LEADER, asked, node_id=leader, timeout=PASSED_ON_SECONDS)
        return await self.answer_here(asked)

    async def answer_here(self, asked: VllmRequest) -> VllmReply | Written[VllmReply]:
        """The same, without asking anybody else. Raises `Unavailable` where we do not lead."""
        for name in _named(asked):
            field, method = self._answers[name]
            reply = VllmReply.model_validate({field: await method(getattr(asked, name))})
            return Written(VllmReply, reply.model_dump_json(include={field}).encode())
        planned = await self._planning.plan(asked)
        return VllmReply.model_validate(planned.model_dump())


def _named(asked: VllmRequest) -> list[str]:
    return [name for name in QUESTIONS if getattr(asked, name) is not None]
