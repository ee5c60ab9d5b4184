"""Functions in processes of their own: as in threads, but nothing can keep them from ending."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from libs.common.contracts.work_marshaling import ASSIGN, Assignment, Assignments, WorkCompleted, WorkFailed
from tests.integration.node_agent.conftest import runs, until
from tests.integration.node_agent.mesh import (
    NODE,
    PLACE,
    AgentAtWork,
    Marshaling,
    agent,
    function_job,
    marshaling,
    start_agent,
)
from tests.integration.node_agent.test_agent_process import bus_to, start
from tests.nats_process import NatsProcess

NAMES = ("echo", "fail", "huge", "not_json", "say", "sleep_with_child", "die", "own_pid")
ENVIRONMENT = {
    "AGENT_FUNCTIONS": ",".join(f"{name}={PLACE}:{name}" for name in NAMES),
    "AGENT_FUNCTION_PROCESSES": "true",
    "AGENT_FUNCTION_SLOTS": "2",
    "AGENT_FUNCTION_GRACE_SECONDS": "0.3",
    "AGENT_DRAIN_SECONDS": "0",
}


@asynccontextmanager
async def process_agent(folder: Path) -> AsyncIterator[tuple[Marshaling, AgentAtWork]]:
    async with marshaling() as other, agent(other.server, folder, ENVIRONMENT) as at_work:
        yield other, at_work


async def ended(other: Marshaling, assignment: Assignment) -> WorkCompleted | WorkFailed:
    answers = await other.assign(assignment)
    assert answers[0].accepted, answers[0].reason
    return await other.outcome_of(assignment)


def sleeping(folder: Path, seconds: int, *, stubborn: bool = False, **changes: Any) -> Assignment:
    arguments = {"file": str(folder / "pid"), "seconds": seconds, "stubborn": stubborn}
    return function_job("sleep_with_child", arguments, **changes)


def children(seconds: int) -> list[int]:
    return [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if f"sleep {seconds}" in " ".join(each.info["cmdline"] or ())
    ]


async def test_a_function_is_called_in_a_process_that_is_kept_for_the_next_call(tmp_path: Path):
    async with process_agent(tmp_path) as (other, _):
        outcomes = [await ended(other, function_job("own_pid")) for _ in range(3)]
        echoed = await ended(other, function_job("echo", {"a": ["ü", 1.5, None]}))

    pids = {outcome.result for outcome in outcomes if isinstance(outcome, WorkCompleted)}
    assert len(pids) == 1
    pid = pids.pop()
    assert isinstance(pid, int)
    assert pid != os.getpid()
    assert not runs(pid)
    assert isinstance(echoed, WorkCompleted)
    assert echoed.result == {"a": ["ü", 1.5, None]}


@pytest.mark.parametrize(
    ("name", "arguments", "code", "retryable"),
    [
        ("fail", 3, "function_failed", True),
        ("unheard_of", None, "no_such_function", True),
        ("huge", 34 * 1024 * 1024, "result_too_large", False),
        ("not_json", None, "bad_result", False),
        ("die", None, "function_died", True),
    ],
)
async def test_what_goes_wrong_is_told_and_the_next_call_is_none_the_worse(
    tmp_path: Path, name: str, arguments: object, code: str, retryable: bool
):
    async with process_agent(tmp_path) as (other, _):
        outcome = await ended(other, function_job(name, arguments))
        afterwards = await ended(other, function_job("echo", 1))

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == (code, retryable)
    assert isinstance(afterwards, WorkCompleted)


async def test_what_a_function_prints_is_its_output_and_of_no_other_job(tmp_path: Path):
    first, second = function_job("say", "one " * 50_000), function_job("say", "two")
    async with process_agent(tmp_path) as (other, at_work):
        for each in (first, second):
            await ended(other, each)
        await until(lambda: "mesh_agent_running 0.0" in at_work.metrics())
        texts = [
            (await at_work.get(f"/api/v1/jobs/{each.work_id}@{each.attempt}/logs")).json()["text"]
            for each in (first, second)
        ]

    assert texts == [("one " * 50_000 + "\n")[-64 * 1024 :], "two\n"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_function_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path, stubborn: bool):
    seconds = 4721 + stubborn
    async with process_agent(tmp_path) as (other, at_work):
        await ended(other, function_job("echo"))  # from now on there is a process, so that its start takes no time
        outcome = await ended(other, sleeping(tmp_path, seconds, stubborn=stubborn, timeout_seconds=2))
        pid = int((tmp_path / "pid").read_text())
        assert not runs(pid)
        await until(lambda: children(seconds) == [])
        await until(lambda: "mesh_agent_slots_free 2.0" in at_work.metrics())

    assert isinstance(outcome, WorkFailed)
    assert outcome.error.code == "timed_out"


async def test_a_function_that_is_stopped_is_ended_with_what_it_started(tmp_path: Path):
    assignment = sleeping(tmp_path, 4723)
    async with process_agent(tmp_path) as (other, _):
        await other.assign(assignment)
        await until(lambda: (tmp_path / "pid").exists() and children(4723))
        answer = await other.stop(assignment.attempt_token or "")
        await until(lambda: children(4723) == [])

    assert answer.stopped == (assignment.attempt_token,)
    assert other.outcomes == []


async def test_an_agent_that_stops_leaves_no_function_behind(tmp_path: Path):
    async with marshaling() as other:
        at_work = await start_agent(other.server, tmp_path, ENVIRONMENT)
        await other.assign(sleeping(tmp_path, 4724))
        await until(lambda: (tmp_path / "pid").exists() and children(4724))
        await at_work.end()
        await until(lambda: children(4724) == [])

    assert not runs(int((tmp_path / "pid").read_text()))


async def test_an_agent_that_is_killed_leaves_no_function_behind(nats: NatsProcess, tmp_path: Path):
    killed = await start(nats, tmp_path, ENGINE="none", **ENVIRONMENT)
    async with bus_to(nats) as bus:
        assignments = Assignments(epoch=1, assignments=(sleeping(tmp_path, 4725),))
        await bus.request(ASSIGN, assignments, node_id=NODE, timeout=5)
        await until(lambda: (tmp_path / "pid").exists() and children(4725))
    await killed.end(signal.SIGKILL)

    await until(lambda: children(4725) == [])
    await until(lambda: not runs(int((tmp_path / "pid").read_text())))
