"""When an attempt begins, and that it does so once, whatever is told again and whatever is lost."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.common.contracts.base import attempt_token, is_of_another_run
from libs.common.contracts.work_marshaling import Assignment, AssignmentAnswer, Assignments, WorkFailed
from libs.common.errors import Unavailable
from services.node_agent.store_sqlite import SqliteJournal
from services.node_agent.use_cases import NodeAgent
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.functions import gate, reached
from tests.integration.node_agent.mesh import agent, bare_agent, function_job, marshaling


class Journal(SqliteJournal):
    """The real one, on a disk that is slow, full or broken when told to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.quick = asyncio.Event()
        self.quick.set()
        self.full = False

    def begin(self, assignments: Sequence[Assignment], at: datetime) -> Awaitable[None]:
        if self.full:
            raise Unavailable("the disk is full")
        return self._slowly(super().begin(assignments, at))

    async def accept(self, assignments: Sequence[Assignment], at: datetime) -> frozenset[str]:
        await self.quick.wait()
        return await super().accept(assignments, at)

    async def _slowly(self, done: Awaitable[None]) -> None:
        await self.quick.wait()
        await done
        if self.full:
            raise Unavailable("the disk is full")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def job_at(name: str) -> Assignment:
    gate(name)
    return function_job("wait_at", name)


async def give(to: NodeAgent, assignment: Assignment, *, again: bool = False) -> AssignmentAnswer:
    answers = await to.assign(Assignments(epoch=1, assignments=(assignment,), again=again))
    return answers.answers[0]


async def idle(agent: NodeAgent) -> None:
    await until(lambda: agent.pools()[0].free_slots == agent.pools()[0].slots)


async def test_what_was_never_told_before_begins_before_it_is_on_disk_and_is_answered_after(
    tmp_path: Path, journal: Journal
):
    assignment = job_at("never-told")
    async with bare_agent(tmp_path, slots=1, journal=journal) as bare:
        journal.quick.clear()
        answer = asyncio.create_task(give(bare, assignment))
        await until(lambda: reached["never-told"].is_set())
        assert not answer.done()

        journal.quick.set()
        assert (await answer).accepted
        gate("never-told").set()
        await idle(bare)


async def test_what_may_have_been_told_before_begins_once_it_is_journaled(tmp_path: Path, journal: Journal):
    assignment = job_at("told-before")
    async with bare_agent(tmp_path, slots=1, journal=journal) as bare:
        journal.quick.clear()
        answer = asyncio.create_task(give(bare, assignment, again=True))
        assert not await asyncio.to_thread(reached["told-before"].wait, 0.1)

        journal.quick.set()
        assert (await answer).accepted
        gate("told-before").set()
        await until(lambda: reached["told-before"].is_set())
        await idle(bare)


async def test_what_runs_is_accepted_also_when_it_does_not_come_onto_the_disk(tmp_path: Path, journal: Journal):
    assignment = job_at("unsynced")
    async with bare_agent(tmp_path, slots=1, journal=journal) as bare:
        journal.quick.clear()
        answer = asyncio.create_task(give(bare, assignment))
        await until(lambda: reached["unsynced"].is_set())
        journal.full = True
        journal.quick.set()

        assert (await answer).accepted
        gate("unsynced").set()
        await idle(bare)


async def test_what_cannot_be_written_does_not_begin(tmp_path: Path, journal: Journal):
    assignment = job_at("full")
    async with bare_agent(tmp_path, slots=1, journal=journal) as bare:
        journal.full = True
        with pytest.raises(Unavailable, match="full"):
            await give(bare, assignment)
        assert not reached["full"].is_set()
        assert bare.pools()[0].free_slots == 1


async def test_an_attempt_of_a_run_of_the_agent_that_nothing_is_known_of_never_begins(tmp_path: Path):
    lines = tmp_path / "lines"
    job = function_job("append_line", {"file": str(lines), "line": "no"}, attempt_token=attempt_token("s", "earlier"))
    async with bare_agent(tmp_path, slots=1) as bare:
        for again in (False, True):
            answer = await give(bare, job, again=again)
            assert (answer.accepted, answer.other_run) == (False, True)
            assert "a run of this agent" in answer.reason
    assert not lines.exists()


async def journal_of(folder: Path, *begun: Assignment, machine_boot: str) -> None:
    """What an earlier run of the agent left, whose boot id was `earlier`."""
    before = SqliteJournal(folder / "node_agent" / "journal.db", machine_boot=machine_boot)
    await before.open()
    await before.runs("earlier")
    await before.begin(begun, datetime(2030, 1, 1, tzinfo=UTC))
    await before.close()


async def test_an_attempt_that_an_earlier_run_had_begun_is_accepted_and_does_not_begin_again(tmp_path: Path):
    lines = tmp_path / "lines"
    job = function_job("append_line", {"file": str(lines), "line": "no"}, attempt_token=attempt_token("s", "earlier"))
    await journal_of(tmp_path, job, machine_boot="before")

    async with marshaling() as other, agent(other.server, tmp_path):
        (answer,) = await other.assign(job, again=True)
        outcome = await other.outcome_of(job)

    assert answer.accepted
    assert isinstance(outcome, WorkFailed)
    assert not lines.exists()


@pytest.mark.parametrize(("machine_boot", "begins"), [("unknown", True), ("before", False)])
async def test_what_an_earlier_run_did_not_begin_begins_unless_the_machine_was_started_since(
    tmp_path: Path, machine_boot: str, begins: bool
):
    """A machine that was started may have lost what that run wrote last; otherwise the journal tells."""
    job = function_job("echo", attempt_token=attempt_token("s", "earlier"))
    await journal_of(tmp_path, machine_boot=machine_boot)

    async with marshaling() as other, agent(other.server, tmp_path):
        (answer,) = await other.assign(job, again=True)
        if begins:
            await other.outcome_of(job)

    assert (answer.accepted, answer.other_run) == (begins, not begins)


def test_a_token_is_of_one_run_of_an_agent():
    token = attempt_token("secret", "0123456789abcdef")

    assert not is_of_another_run(token, ["fedcba9876543210", "0123456789abcdef"])
    assert is_of_another_run(token, ["fedcba9876543210"])


@pytest.mark.parametrize("boot_id", [None, "with.dot", "a/b", "x" * 65, ""])
def test_a_token_without_a_boot_id_that_fits_is_of_any_run(boot_id: str | None):
    assert not is_of_another_run(attempt_token("secret", boot_id), ["fedcba9876543210"])
