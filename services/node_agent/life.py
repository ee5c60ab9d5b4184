"""The order in which the agent's parts begin and end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.node_agent.model import Running
from services.node_agent.outbox import Outbox
from services.node_agent.reports import Reports, Workload
from services.node_agent.store import Journal
from services.node_agent.use_cases import NodeAgent

log = structlog.get_logger()

DELIVERY_SECONDS = 2.0

Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(kw_only=True)
class AgentLife:
    """What must go on while the last jobs finish cannot be a loop of the kit, which end first: it is kept here.

    `beside` are such works of others, an engine's for example; `last` is done when everything else has ended.
    """

    agent: NodeAgent
    journal: Journal
    outbox: Outbox
    reports: Reports
    beside: Mapping[str, Work]
    last: Callable[[], Awaitable[None]]
    drain_seconds: float
    _ended: "asyncio.Queue[BaseException]" = field(default_factory=asyncio.Queue)

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        await self.journal.open()
        works = {
            "outbox": self.outbox.run,
            "progress": lambda: self.reports.tell_progress(self._leased),
            "workload": lambda: self.reports.tell_workload(self._workload),
            **self.beside,
        }
        tasks = [asyncio.create_task(self._guarded(name, work), name=name) for name, work in works.items()]
        try:
            await self.agent.recover()
            yield
        finally:
            await self._end(tasks)

    async def nothing_ended(self) -> None:
        """Until cancelled. Raises what ended a part that must not end."""
        raise await self._ended.get()

    async def _guarded(self, name: str, work: Work) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised again in `nothing_ended`, which ends the process
            self._ended.put_nowait(error)
        else:
            self._ended.put_nowait(RuntimeError(f"{name} returned, but it must run for ever"))

    async def _end(self, tasks: "list[asyncio.Task[None]]") -> None:
        try:
            await self.agent.finish(self.drain_seconds)
            if not await self.outbox.emptied(DELIVERY_SECONDS):
                log.warning("outcomes_kept", undelivered=self.outbox.undelivered, note="delivered at the next start")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.last()
            await self.journal.close()

    def _leased(self) -> Sequence[Running]:
        """What runs, and what is over but not yet told: without its lease it would be run again elsewhere."""
        by_token = {each.assignment.attempt_token: each for each in (*self.outbox.held(), *self.agent.running())}
        return tuple(by_token.values())

    def _workload(self) -> Workload:
        agent = self.agent
        return Workload(
            pools=agent.pools(), engines=agent.engine_states(), running=agent.running(), draining=agent.draining
        )
