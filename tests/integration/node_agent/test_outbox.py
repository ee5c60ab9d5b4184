"""Outcomes between the journal and NATS."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from libs.common.clock import SystemClock
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import COMPLETED, FAILED, Assignment
from services.node_agent.model import Outcome
from services.node_agent.observer_prometheus import PrometheusObserver
from services.node_agent.outbox import Outbox
from services.node_agent.outcomes import completed
from services.node_agent.store_sqlite import SqliteJournal
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.mesh import Marshaling, function_job, marshaling


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


@asynccontextmanager
async def delivering(other: Marshaling, journal: SqliteJournal) -> AsyncIterator[Outbox]:
    outbox = Outbox(other.bus, journal, SystemClock(), PrometheusObserver(CollectorRegistry()))
    async with opened(journal), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outbox.run())
        yield outbox
        task.cancel()


async def end_all(outbox: Outbox, assignments: Sequence[Assignment], result: object = None) -> None:
    now = SystemClock().now()
    outcome = completed(result, started_at=now, ended_at=now)
    await asyncio.gather(*(outbox.end(each, outcome) for each in assignments))


async def test_small_results_of_the_same_moment_are_one_message_and_large_ones_each_their_own(tmp_path: Path):
    small, large = [function_job("echo") for _ in range(50)], [function_job("echo") for _ in range(2)]
    async with marshaling() as other, delivering(other, SqliteJournal(tmp_path / "journal.db")) as outbox:
        await asyncio.gather(end_all(outbox, small), end_all(outbox, large, "x" * 5_000))
        assert await outbox.emptied(20)
        told = [await other.outcome_of(each) for each in (*small, *large)]
        messages = (await other.bus.stream_state(WORK_OUT)).messages

    assert [each.attempt_token for each in told] == [each.attempt_token for each in (*small, *large)]
    assert messages == 3


async def test_a_work_marshaling_that_knows_no_message_with_many_is_told_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("services.node_agent.outbox.APPEND_SECONDS", 0.5)
    old = replace(WORK_OUT, subjects=(COMPLETED.subject, FAILED.subject))
    assignments = [function_job("echo") for _ in range(5)]
    async with marshaling(old) as other, delivering(other, SqliteJournal(tmp_path / "journal.db")) as outbox:
        await end_all(outbox, assignments)
        assert await outbox.emptied(20)
        messages = (await other.bus.stream_state(WORK_OUT)).messages

    assert messages == 5


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
