"""Outcomes between the journal and NATS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from libs.common.clock import SystemClock
from services.node_agent.model import Outcome
from services.node_agent.observer_prometheus import PrometheusObserver
from services.node_agent.outbox import Outbox
from services.node_agent.outcomes import completed
from services.node_agent.store_sqlite import SqliteJournal
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.mesh import function_job, marshaling


class HeldUpJournal(SqliteJournal):
    """A disk that takes its time over ends, until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go_on = asyncio.Event()

    async def ended(self, token: str, outcome: Outcome) -> None:
        await self.go_on.wait()
        await super().ended(token, outcome)


@asynccontextmanager
async def opened(journal: SqliteJournal) -> AsyncIterator[None]:
    await journal.open()
    try:
        yield
    finally:
        await journal.close()


async def test_nats_is_told_of_an_end_while_the_disk_is_busy(tmp_path: Path):
    journal = HeldUpJournal(tmp_path / "journal.db")
    assignment = function_job("echo")
    async with marshaling() as other, opened(journal), asyncio.TaskGroup() as tasks:
        outbox = Outbox(other.bus, journal, SystemClock(), PrometheusObserver(CollectorRegistry()))
        delivering = tasks.create_task(outbox.run())
        now = SystemClock().now()
        await journal.accept([assignment], now)
        ending = tasks.create_task(outbox.end(assignment, completed(None, started_at=now, ended_at=now)))
        told = await other.outcome_of(assignment)
        journaled_by_then = ending.done()
        journal.go_on.set()
        await until(lambda: outbox.undelivered == 0)
        delivering.cancel()

    assert told.attempt_token == assignment.attempt_token
    assert not journaled_by_then


async def test_an_outcome_is_let_go_only_when_the_journal_knows_that_it_was_delivered(tmp_path: Path):
    journal = SqliteJournal(tmp_path / "journal.db")
    assignments = [function_job("echo") for _ in range(200)]
    async with marshaling() as other, opened(journal), asyncio.TaskGroup() as tasks:
        outbox = Outbox(other.bus, journal, SystemClock(), PrometheusObserver(CollectorRegistry()))
        delivering = tasks.create_task(outbox.run())
        now = SystemClock().now()
        await journal.accept(assignments, now)
        outcome = completed(None, started_at=now, ended_at=now)
        await asyncio.gather(*(outbox.end(each, outcome) for each in assignments))
        emptied = await outbox.emptied(20)
        left = await journal.open_attempts()
        delivering.cancel()

    assert emptied
    assert left == []
