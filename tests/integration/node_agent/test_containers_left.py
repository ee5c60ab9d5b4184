"""Containers that outlive an agent that was killed, and the agent that finds them."""

import asyncio
import contextlib
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from libs.common.bus.bus import Bus
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    PROGRESS,
    Assignment,
    Assignments,
    WorkCompleted,
    WorkFailed,
    WorkProgress,
)
from tests.docker_process import IMAGE, DockerProcess
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.mesh import NODE, outcomes_in
from tests.integration.node_agent.test_agent_process import agent_process, bus_to, start
from tests.integration.node_agent.test_containers import container_job, environment
from tests.nats_process import NatsProcess

UNTIL_GO = "echo up >> out; until [ -e go ]; do sleep 0.05; done; echo done >> out"


def settings(docker: DockerProcess) -> dict[str, str]:
    return {"ENGINE": "none", **environment(docker)}


def work_folder(folder: Path) -> Path:
    return next((folder / "node_agent" / "containers").iterdir())


async def killed_while_it_ran(
    docker: DockerProcess, nats: NatsProcess, bus: Bus, folder: Path, assignment: Assignment
) -> None:
    agent = await start(nats, folder, **settings(docker))
    answer = await bus.request(ASSIGN, Assignments(epoch=1, assignments=(assignment,)), node_id=NODE, timeout=5)
    assert answer.answers[0].accepted
    await until(lambda: list(folder.glob("node_agent/containers/*/out")))
    await agent.end(signal.SIGKILL)


def began(folder: Path, at: datetime) -> None:
    """Let the journal say when its attempts were accepted."""
    with contextlib.closing(sqlite3.connect(folder / "node_agent" / "journal.db", isolation_level=None)) as database:
        database.execute("UPDATE attempts SET accepted_at = ?", (at.isoformat(),))


async def outcomes(bus: Bus, count: int) -> list[WorkCompleted | WorkFailed]:
    found: list[WorkCompleted | WorkFailed] = []
    async with asyncio.timeout(20):
        async for batch in bus.read(WORK_OUT, after=0):
            for stored in batch:
                found += outcomes_in(bus, stored)
            if len(found) >= count:
                return found
    return found


async def test_the_next_agent_goes_on_with_a_container_and_reports_it_once(
    docker: DockerProcess, nats: NatsProcess, tmp_path: Path
):
    assignment = container_job(UNTIL_GO, outputs=["out"], lease_seconds=1)
    renewed: list[WorkProgress] = []

    async def heard(message: WorkProgress) -> None:
        renewed.append(message)

    async with bus_to(nats) as bus:
        await killed_while_it_ran(docker, nats, bus, tmp_path, assignment)
        [name] = docker.names()
        await bus.subscribe(PROGRESS, heard)
        async with agent_process(nats, tmp_path, **settings(docker)):
            await until(lambda: len(renewed) >= 2)
            assert docker.names() == [name]
            (work_folder(tmp_path) / "go").touch()
            [outcome] = await outcomes(bus, 1)
            await until(lambda: docker.names() == [])

    assert {each.attempt_token for message in renewed for each in message.attempts} == {assignment.attempt_token}
    assert isinstance(outcome, WorkCompleted)
    assert outcome.attempt_token == assignment.attempt_token
    assert isinstance(outcome.result, dict)
    assert outcome.result["files"] == {"out": {"text": "up\ndone\n"}}


async def test_what_ended_while_no_agent_was_there_is_reported_and_strays_are_removed(
    docker: DockerProcess, nats: NatsProcess, tmp_path: Path
):
    assignment = container_job(UNTIL_GO, outputs=["out"])
    async with bus_to(nats) as bus:
        await killed_while_it_ran(docker, nats, bus, tmp_path, assignment)
        (work_folder(tmp_path) / "go").touch()
        await until(lambda: docker.client.containers() == [])
        stray = docker.client.create_container(IMAGE, ["sleep", "100"], labels={"mesh.node_id": NODE})
        foreign = docker.client.create_container(IMAGE, ["true"], name="foreign", labels={"mesh.node_id": "another"})
        docker.client.start(stray["Id"])
        async with agent_process(nats, tmp_path, **settings(docker)):
            [outcome] = await outcomes(bus, 1)
            await until(lambda: docker.names() == ["/foreign"])
        docker.client.remove_container(foreign["Id"])

    assert isinstance(outcome, WorkCompleted)
    assert isinstance(outcome.result, dict)
    assert outcome.result["files"] == {"out": {"text": "up\ndone\n"}}
    assert list((tmp_path / "node_agent" / "containers").iterdir()) == []


async def test_the_time_limit_of_a_container_counts_from_its_start_also_under_the_next_agent(
    docker: DockerProcess, nats: NatsProcess, tmp_path: Path
):
    assignment = container_job(UNTIL_GO, timeout_seconds=60)
    async with bus_to(nats) as bus:
        await killed_while_it_ran(docker, nats, bus, tmp_path, assignment)
        began(tmp_path, datetime.now(UTC) - timedelta(seconds=61))
        async with agent_process(nats, tmp_path, **settings(docker)):
            [outcome] = await outcomes(bus, 1)
            await until(lambda: docker.names() == [])

    assert isinstance(outcome, WorkFailed)
    assert outcome.error.code == "timed_out"
    assert outcome.started_at is not None
    assert outcome.ended_at is not None
    assert (outcome.ended_at - outcome.started_at).total_seconds() > 60


async def test_a_container_that_is_gone_when_the_next_agent_comes_is_reported_as_failed(
    docker: DockerProcess, nats: NatsProcess, tmp_path: Path
):
    async with bus_to(nats) as bus:
        await killed_while_it_ran(docker, nats, bus, tmp_path, container_job(UNTIL_GO))
        docker.client.remove_container(docker.names()[0], force=True)
        async with agent_process(nats, tmp_path, **settings(docker)):
            [outcome] = await outcomes(bus, 1)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("agent_restarted", True)
