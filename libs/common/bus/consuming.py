"""What is done with the messages of a durable consumer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager

import structlog

from libs.common.bus.transport import Delivery, Stored
from libs.common.clock import Clock
from libs.common.errors import Malformed, MeshError

PAUSE_SECONDS = 1.0
WORKING_SECONDS = 10.0

_log = structlog.get_logger()


class Consuming:
    """Every delivery in a task of its own, `at_once` of them running, each settled in the end.

    A message that cannot be used becomes a dead letter and is never delivered again. One whose handler declined is
    given back after a pause, during which others run. A bug in the handler ends it all, by raising.
    """

    def __init__(
        self,
        handler: Callable[[Stored], Awaitable[None]],
        *,
        handling: Callable[[Stored], AbstractContextManager[None]],
        dead_letter: Callable[[Stored, MeshError], Awaitable[None]],
        clock: Clock,
        at_once: int,
    ) -> None:
        self._handler = handler
        self._handling = handling
        self._dead_letter = dead_letter
        self._clock = clock
        self._places = asyncio.Semaphore(at_once)
        self._unsettled: set[Delivery] = set()

    async def run(self, deliveries: AsyncIterator[Delivery]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep())
            async for delivery in deliveries:
                self._unsettled.add(delivery)  # also while it waits for its place, or another would get it meanwhile
                await self._places.acquire()
                tasks.create_task(self._settle(delivery))

    async def _keep(self) -> None:
        """Say of everything in hand that it is being worked on, so that the server gives it to nobody else."""
        while True:
            await self._clock.sleep(WORKING_SECONDS)
            for delivery in tuple(self._unsettled):
                await _try(delivery.working(), "delivery_not_kept", delivery)

    async def _settle(self, delivery: Delivery) -> None:
        try:
            refusal = await self._handle(delivery.message)
            if refusal is None:
                await _try(delivery.ack(), "delivery_not_acknowledged", delivery)
            elif isinstance(refusal, Malformed):
                await self._bury(delivery, refusal)
            else:
                await self._give_back(delivery, refusal)
        finally:
            self._unsettled.discard(delivery)

    async def _handle(self, stored: Stored) -> MeshError | None:
        try:
            with self._handling(stored):
                await self._handler(stored)
        except MeshError as refusal:
            return refusal
        finally:
            self._places.release()
        return None

    async def _bury(self, delivery: Delivery, reason: MeshError) -> None:
        try:
            await self._dead_letter(delivery.message, reason)
        except MeshError as error:  # not kept: then it must come again
            await self._give_back(delivery, error)
        else:
            await _try(delivery.term(reason.code), "delivery_not_ended", delivery)

    async def _give_back(self, delivery: Delivery, refusal: MeshError) -> None:
        stored = delivery.message
        _log.warning(
            "delivery_given_back",
            subject=stored.subject,
            sequence=stored.sequence,
            delivered=delivery.delivered,
            code=refusal.code,
            reason=refusal.message,
        )
        await self._clock.sleep(PAUSE_SECONDS)
        await _try(delivery.nak(), "delivery_not_given_back", delivery)


async def _try(settling: Awaitable[None], event: str, delivery: Delivery) -> None:
    """Settle while the server is there; what stays unsettled is delivered again by it."""
    try:
        await settling
    except MeshError as error:
        _log.warning(event, subject=delivery.message.subject, sequence=delivery.message.sequence, code=error.code)
