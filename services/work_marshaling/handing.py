"""What only the leader can answer is handed on to it over NATS by an instance that stands by."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from libs.common.bus.bus import Bus
from libs.common.contracts.base import Call, Message
from libs.common.contracts.work_leading import (
    HAND_ON,
    HAND_ON_CALL,
    LEADER,
    HandedAnswer,
    HandedCall,
    HandedReply,
    HandedRequest,
    Leader,
    LeaderAsked,
    LeaderTold,
)
from libs.common.errors import NotFound, TooLarge, Unavailable
from services.work_marshaling.leading import Leading

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

ANSWER_SECONDS = 75.0
"""Longer than any request is let wait."""


class Handing:
    """`inside` answers a request to the REST door of this very process."""

    def __init__(self, *, bus: Bus, leading: Leading, instance_id: str) -> None:
        self._bus = bus
        self._leading = leading
        self._instance_id = instance_id
        self.inside: Callable[[HandedRequest], Awaitable[HandedAnswer]] = _nothing_inside
        self._calls: dict[str, tuple[Call[Any, Any], Callable[[Any], Awaitable[Message]]]] = {}

    async def open_door(self) -> None:
        """Serve what others hand on to us."""
        await self._bus.serve(LEADER, self.told, node_id=self._instance_id)
        await self._bus.serve(HAND_ON, self._answer, node_id=self._instance_id)
        await self._bus.serve(HAND_ON_CALL, self._reply, node_id=self._instance_id)

    async def told(self, asked: LeaderAsked) -> LeaderTold:
        leads = self._leading.leads()
        return LeaderTold(leads=leads, epoch=self._leading.present.term.epoch if leads else 0)

    # REST

    async def request(self, asked: HandedRequest) -> HandedAnswer | None:
        """The leader's answer; None when we are it. Raises `Unavailable`, which names the leader."""
        leader = self._leading.leader
        if leader is None:
            return None
        return await self._of(leader, self._bus.request(HAND_ON, asked, node_id=leader.holder, timeout=ANSWER_SECONDS))

    async def _answer(self, asked: HandedRequest) -> HandedAnswer:
        self._leading.present  # noqa: B018  # raises while we do not lead: nothing is handed on twice
        return await self.inside(asked)

    # NATS

    def by_leader(self, call: Call[Q, A], handler: Callable[[Q], Awaitable[A]]) -> Callable[[Q], Awaitable[A]]:
        """The handler where we lead, and otherwise the leader's."""
        self._calls[call.subject] = (call, handler)

        async def answer(asked: Q) -> A:
            leader = self._leading.leader
            if leader is None:
                return await handler(asked)
            handed = HandedCall(subject=call.subject, request=asked.model_dump(mode="json"))
            asking = self._bus.request(HAND_ON_CALL, handed, node_id=leader.holder, timeout=ANSWER_SECONDS)
            return call.reply.model_validate((await self._of(leader, asking)).reply)

        return answer

    async def _reply(self, asked: HandedCall) -> HandedReply:
        self._leading.present  # noqa: B018  # raises while we do not lead: nothing is handed on twice
        if asked.subject not in self._calls:
            raise NotFound(f"{asked.subject} is not answered here")
        call, handler = self._calls[asked.subject]
        reply = await handler(call.request.model_validate(asked.request))
        return HandedReply(reply=reply.model_dump(mode="json"))

    async def _of(self, leader: Leader, asking: Awaitable[A]) -> A:
        """Its answer, unless another leads before it comes."""
        task, changed = asyncio.ensure_future(asking), asyncio.ensure_future(self._leading.changed())
        try:
            await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Unavailable(f"{leader.holder} led, and leads no more; ask again")
            return task.result()
        except TooLarge as error:
            where = f"{leader.holder} on {leader.node_id}, whose HTTP door is port {leader.port}"
            raise Unavailable(f"the answer is too large to be handed on, ask the leader: {where}") from error
        finally:
            for each in (task, changed):
                each.cancel()


async def _nothing_inside(asked: HandedRequest) -> HandedAnswer:
    raise NotFound(f"There is no route {asked.path}.")
