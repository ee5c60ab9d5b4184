"""Container jobs on a real Docker engine, through the whole agent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from docker.types import LogConfig

from libs.common.contracts.work_marshaling import Assignment, WorkCompleted, WorkFailed
from libs.common.contracts.work_requirements import JobMemory
from services.node_agent.containers import ContainerPlan
from services.node_agent.containers_docker import DockerContainers
from services.node_agent.model import JobFailed
from tests.docker_process import IMAGE, DockerProcess
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.mesh import NODE, AgentAtWork, Marshaling, agent, job, marshaling, start_agent
from tests.unit.gpu_orchestrator.world import MadeUpProcesses, made_world

FACTS = """
id -u > uid; id -G > groups
grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status > status
ls /sys/class/net > networks
echo x 2>/dev/null > /etc/x && echo "root can be written" > etc
echo x > /tmp/x && cat greeting in/data.bin > both
echo "to stdout $NAME"; echo "to stderr" >&2
"""


def container_job(script: str, **changes: Any) -> Assignment:
    """Changes of the assignment are those whose names it knows; the rest is of the container."""
    ours = {name: changes.pop(name) for name in list(changes) if name in Assignment.model_fields}
    return job("container", {"image": IMAGE, "command": ["sh", "-c", script], **changes}, **ours)


def environment(docker: DockerProcess, **more: str) -> dict[str, str]:
    return {
        "AGENT_FUNCTIONS": "",
        "CONTAINER_IMAGES": "mesh-test/*,another",
        "CONTAINER_MEMORY_MB": "64",
        "CONTAINER_GRACE_SECONDS": "1",
        "DOCKER_HOST": docker.address,
        "AGENT_DRAIN_SECONDS": "0",
        **more,
    }


@asynccontextmanager
async def container_agent(
    docker: DockerProcess, folder: Path, **more: str
) -> AsyncIterator[tuple[Marshaling, AgentAtWork]]:
    async with marshaling() as other, agent(other.server, folder, environment(docker, **more)) as at_work:
        yield other, at_work


async def result_of(other: Marshaling, assignment: Assignment) -> dict[str, Any]:
    outcome = await assigned(other, assignment)
    assert isinstance(outcome, WorkCompleted), outcome
    assert isinstance(outcome.result, dict)
    return outcome.result


async def error_of(other: Marshaling, assignment: Assignment) -> tuple[str, bool, str]:
    outcome = await assigned(other, assignment)
    assert isinstance(outcome, WorkFailed), outcome
    return outcome.error.code, outcome.error.retryable, outcome.error.message


async def assigned(other: Marshaling, assignment: Assignment) -> WorkCompleted | WorkFailed:
    answers = await other.assign(assignment)
    assert answers[0].accepted, answers[0].reason
    return await other.outcome_of(assignment)


async def nothing_left(docker: DockerProcess, at_work: AgentAtWork, folder: Path) -> None:
    """Neither containers nor files: the last is removed once its outcome is in the journal."""
    await until(lambda: docker.names() == [])
    await until(lambda: list((folder / "node_agent" / "containers").iterdir()) == [])
    await until(lambda: "mesh_agent_running 0.0" in at_work.metrics())


def processes(marker: str) -> list[int]:
    return [each.pid for each in psutil.process_iter(["cmdline"]) if marker in " ".join(each.info["cmdline"] or ())]


async def test_a_container_gets_its_files_and_variables_and_gives_its_files_and_output(
    docker: DockerProcess, tmp_path: Path
):
    names = ("uid", "groups", "status", "networks", "both")
    assignment = container_job(
        FACTS,
        files={"greeting": {"text": "hello "}, "in/data.bin": {"base64": "/wAB"}},
        environment={"NAME": "of it"},
        outputs=list(names),
    )
    async with container_agent(docker, tmp_path) as (other, at_work):
        result = await result_of(other, assignment)
        await nothing_left(docker, at_work, tmp_path)

    assert (result["exit_code"], result["stdout"], result["stderr"]) == (0, "to stdout of it\n", "to stderr\n")
    assert result["files"]["both"] == {"base64": "aGVsbG8g/wAB"}
    facts = {name: result["files"][name]["text"].split() for name in names if name != "both"}
    assert (facts["uid"], facts["groups"]) == (["65534"], ["65534"])
    assert facts["status"] == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1"] or facts["status"] == [
        *("CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1")
    ]
    assert facts["networks"] == ["lo"]


async def test_a_container_is_confined_and_says_whose_it_is(docker: DockerProcess, tmp_path: Path):
    assignment = container_job("sleep 60", cpus=0.5, memory_mb=32)
    async with container_agent(docker, tmp_path) as (other, at_work):
        await other.assign(assignment)
        await until(lambda: [each["State"] for each in docker.client.containers()] == ["running"])
        shown = docker.client.inspect_container(docker.names()[0])
        await other.stop(assignment.attempt_token or "")
        await nothing_left(docker, at_work, tmp_path)

    labels, limits = shown["Config"]["Labels"], shown["HostConfig"]
    assert labels["mesh.attempt_token"] == assignment.attempt_token
    assert (labels["mesh.work_id"], labels["mesh.node_id"]) == (assignment.work_id, NODE)
    assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (5 * 10**8, 32 * 2**20, 32 * 2**20)
    assert limits["ReadonlyRootfs"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges"]
    assert (limits["PidsLimit"], limits["NetworkMode"], limits["Privileged"]) == (256, "none", False)
    assert limits["LogConfig"]["Config"] == {"max-file": "2", "max-size": "1048576"}
    assert limits["LogConfig"]["Type"] == LogConfig.types.JSON


async def test_a_container_cannot_write_into_its_image(docker: DockerProcess, tmp_path: Path):
    async with container_agent(docker, tmp_path) as (other, _):
        code, _, message = await error_of(other, container_job("echo x > /bin/x"))

    assert code == "container_failed"
    assert "Read-only file system" in message


async def test_a_container_that_needs_more_memory_than_it_has_fails_for_good(docker: DockerProcess, tmp_path: Path):
    async with container_agent(docker, tmp_path) as (other, _):
        code, retryable, message = await error_of(
            other, container_job("head -c 100000000 /dev/zero | tail", memory_mb=16)
        )

    assert (code, retryable) == ("oom_killed", False)
    assert "16 MiB" in message


async def test_the_exit_status_is_told_and_some_may_be_called_a_success(docker: DockerProcess, tmp_path: Path):
    async with container_agent(docker, tmp_path) as (other, _):
        code, retryable, message = await error_of(other, container_job("echo broken >&2; exit 3"))
        result = await result_of(other, container_job("exit 3", success_exit_codes=[0, 3]))

    assert (code, retryable) == ("container_failed", True)
    assert message == "it ended with exit status 3: broken"
    assert result["exit_code"] == 3


async def test_a_container_that_ignores_sigterm_is_killed_after_its_time_and_the_grace(
    docker: DockerProcess, tmp_path: Path
):
    assignment = container_job("trap '' TERM; sleep 4711 & sleep 4711", timeout_seconds=0.7)
    async with container_agent(docker, tmp_path) as (other, at_work):
        code, retryable, _ = await error_of(other, assignment)
        assert processes("sleep 4711") == []
        await nothing_left(docker, at_work, tmp_path)

    assert (code, retryable) == ("timed_out", True)


async def test_a_container_that_is_stopped_hears_sigterm_first(docker: DockerProcess, tmp_path: Path):
    assignment = container_job("trap 'echo heard it; exit 0' TERM; echo up; while true; do sleep 0.05; done")
    async with container_agent(docker, tmp_path, CONTAINER_GRACE_SECONDS="20") as (other, at_work):
        await other.assign(assignment)
        await until(lambda: any(each.text for message in other.progress for each in message.attempts))
        answer = await other.stop(assignment.attempt_token or "")
        await nothing_left(docker, at_work, tmp_path)
        shown = (await at_work.get(f"/api/v1/jobs/{assignment.work_id}@{assignment.attempt}/logs")).json()

    assert answer.stopped == (assignment.attempt_token,)
    assert other.outcomes == []
    assert (shown["text"], shown["over"]) == ("up\nheard it\n", True)


async def test_an_agent_that_stops_leaves_no_container_behind(docker: DockerProcess, tmp_path: Path):
    assignment = container_job("sleep 4712")
    async with marshaling() as other:
        at_work = await start_agent(other.server, tmp_path, environment(docker))
        await other.assign(assignment)
        await until(lambda: processes("sleep 4712"))
        await at_work.end()
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkFailed)
    assert outcome.error.code == "agent_stopping"
    assert docker.names() == []
    assert processes("sleep 4712") == []


async def test_files_that_fill_the_disk_end_the_job(docker: DockerProcess, tmp_path: Path):
    script = "n=0; while true; do n=$((n+1)); head -c 200000 /dev/zero > f$n; done"
    async with container_agent(docker, tmp_path, CONTAINER_DISK_MB="2") as (other, at_work):
        code, retryable, message = await error_of(other, container_job(script))
        await nothing_left(docker, at_work, tmp_path)

    assert (code, retryable) == ("disk_exceeded", False)
    assert "CONTAINER_DISK_MB gives a container 2" in message


@pytest.mark.parametrize(
    ("script", "output", "code"),
    [
        ("ln -s /etc/passwd out", "out", "output_refused"),
        ("ln -s /etc folder", "folder/passwd", "output_refused"),
        ("mkfifo out", "out", "output_refused"),
        ("mkdir out", "out", "output_refused"),
        ("true", "out", "output_missing"),
        ("head -c 300000 /dev/zero > out", "out", "output_too_large"),
    ],
)
async def test_only_plain_files_of_bounded_size_are_taken_out(
    docker: DockerProcess, tmp_path: Path, script: str, output: str, code: str
):
    async with container_agent(docker, tmp_path) as (other, at_work):
        told, retryable, message = await error_of(other, container_job(script, outputs=[output]))
        await nothing_left(docker, at_work, tmp_path)

    assert (told, retryable) == (code, False)
    assert output.split("/")[0] in message


@pytest.mark.parametrize(
    ("changes", "code", "retryable", "words"),
    [
        ({"image": "elsewhere/busybox:1"}, "image_not_allowed", True, "CONTAINER_IMAGES does not allow"),
        ({"image": "another"}, "image_missing", True, "`image` another is not on this node"),
        ({"network": True}, "network_not_allowed", True, "CONTAINER_NETWORK"),
        ({"memory_mb": 65}, "limit_exceeded", True, "`memory_mb` is 65; CONTAINER_MEMORY_MB gives a container 64 here"),
        ({"cpus": 1.5}, "limit_exceeded", True, "CONTAINER_CPUS"),
        ({"gpus": 2}, "limit_exceeded", True, "CONTAINER_GPUS"),
        ({"gpus": 1}, "container_refused", True, "install the NVIDIA Container Toolkit"),
        (
            {"command": ["no-such-program"]},
            "container_failed",
            True,
            "exec no-such-program failed",
        ),
        ({"files": {"../x": {"text": ""}}}, "bad_payload", False, "`files` must be paths inside the work folder"),
        ({"imgae": "x"}, "bad_payload", False, "`imgae` is no field of a container"),
    ],
)
async def test_what_cannot_run_here_is_told_with_the_field_and_leaves_nothing(
    docker: DockerProcess, tmp_path: Path, changes: dict[str, Any], code: str, retryable: bool, words: str
):
    async with container_agent(docker, tmp_path, CONTAINER_GPUS="GPU-1") as (other, _):
        told = await error_of(other, container_job("true", **changes))

    assert told[:2] == (code, retryable), told
    assert words in told[2]
    assert docker.names() == []


async def test_a_container_that_may_and_asks_for_it_reaches_a_server(docker: DockerProcess, tmp_path: Path):
    if docker.gateway is None:
        pytest.skip("no bridge can be made here: apt-get install iproute2, and run as root")
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_server(answer, docker.gateway, 0)
    script = f"ls /sys/class/net; wget -q -O - http://{docker.gateway}:{server.sockets[0].getsockname()[1]}/from-inside"
    async with server, container_agent(docker, tmp_path, CONTAINER_NETWORK="true") as (other, _):
        found = await result_of(other, container_job(script, network=True))
        closed = await error_of(other, container_job(script))

    assert found["stdout"].split() == ["eth0", "lo", "hello"]
    assert asked == [b"GET /from-inside HTTP/1.1\r\n"]
    assert closed[0] == "container_failed"
    assert docker.names() == []


async def test_what_a_container_is_promised_is_held_by_it_until_it_is_gone(
    docker: DockerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def is_there(self: MadeUpProcesses, container_id: str) -> bool:
        return any(each["Id"] == container_id for each in docker.client.containers(all=True))

    monkeypatch.setattr(MadeUpProcesses, "has_container", is_there)
    assignment = container_job("sleep 0.5", memory=JobMemory(ram_mb=100))
    async with (
        container_agent(docker, tmp_path) as (other, _),
        made_world(tmp_path, node_id=NODE, server=other.server) as world,
    ):

        def holders() -> list[str | None]:
            return [each.container_id for each in world.orchestrator.reservations(only_open=True).reservations]

        await other.assign(assignment)
        await until(lambda: len(holders()) == 1 and holders()[0] is not None)
        (running,) = docker.client.containers(all=True)
        assert holders() == [running["Id"]]
        assert isinstance(await other.outcome_of(assignment), WorkCompleted)
        await until(lambda: holders() == [])


async def test_gpus_are_asked_for_by_uuid_and_without_their_runtime_it_is_said_what_is_missing(docker: DockerProcess):
    containers = DockerContainers(docker.address, node_id=NODE, slots=1)
    plan = ContainerPlan(
        name="with-gpus",
        image=IMAGE,
        command=["true"],
        environment={},
        labels={},
        work_folder="/tmp",
        cpus=1,
        memory_mb=64,
        file_mb=1,
        gpu_uuids=("GPU-1", "GPU-2"),
        network=False,
    )
    try:
        with pytest.raises(JobFailed, match="Docker cannot give it GPUs: install the NVIDIA Container Toolkit"):
            await containers.start(plan)
        (asked,) = docker.client.inspect_container("with-gpus")["HostConfig"]["DeviceRequests"]
        assert (asked["DeviceIDs"], asked["Capabilities"]) == (["GPU-1", "GPU-2"], [["gpu"]])
        assert asked["Count"] == 0
    finally:
        await containers.remove("with-gpus")
        containers.close()


async def test_of_long_output_the_end_is_kept(docker: DockerProcess, tmp_path: Path):
    assignment = container_job("yes 0123456789abcdef | head -c 4000000; echo the end")
    async with container_agent(docker, tmp_path) as (other, at_work):
        result = await result_of(other, assignment)
        shown = (await at_work.get(f"/api/v1/jobs/{assignment.work_id}@{assignment.attempt}/logs?tail=2")).json()

    assert result["output_cut"]
    assert len(result["stdout"]) == 32 * 1024
    assert result["stdout"].endswith("0the end\n") or result["stdout"].endswith("the end\n")
    assert len(shown["text"].splitlines()) == 2
    told = sum(len(each.text or "") for message in other.progress for each in message.attempts)
    assert told < 64 * 1024


async def test_the_log_of_a_running_job_can_be_followed(docker: DockerProcess, tmp_path: Path):
    assignment = container_job("echo first; until [ -e go ]; do sleep 0.05; done; echo second")
    async with container_agent(docker, tmp_path) as (other, at_work):
        place = f"/api/v1/jobs/{assignment.work_id}@{assignment.attempt}/logs"
        await other.assign(assignment)
        while not (first := (await at_work.get(place)).json())["text"]:
            await asyncio.sleep(0.02)
        next((tmp_path / "node_agent" / "containers").iterdir()).joinpath("go").touch()
        await other.outcome_of(assignment)
        await until(lambda: "mesh_agent_running 0.0" in at_work.metrics())
        second = (await at_work.get(f"{place}?after={first['next_after']}")).json()
        unknown = await at_work.get("/api/v1/jobs/unknown@1/logs")

    assert (first["text"], first["over"]) == ("first\n", False)
    assert (second["text"], second["over"]) == ("second\n", True)
    assert unknown.status_code == 404


async def test_without_its_engine_no_container_is_taken_until_it_is_there(docker: DockerProcess, tmp_path: Path):
    socket = tmp_path / "docker.sock"
    async with container_agent(docker, tmp_path, DOCKER_HOST=f"unix://{socket}") as (other, at_work):
        away = await other.assign(container_job("true"))
        problems = [await check() for check in at_work.service.checks.values()]
        socket.symlink_to(docker.address.removeprefix("unix://"))
        await until(lambda: other.workloads[-1].work_types == ("container",))
        result = await result_of(other, container_job("true"))

    assert not away[0].accepted
    assert "no container is done here now: Docker does not answer at unix://" in away[0].reason
    assert any("Docker does not answer" in (problem or "") for problem in problems)
    assert result["exit_code"] == 0


async def test_several_containers_run_at_once_and_no_more_than_there_are_slots(docker: DockerProcess, tmp_path: Path):
    jobs = [container_job("until [ -e /work/go ]; do sleep 0.05; done") for _ in range(3)]
    async with container_agent(docker, tmp_path, CONTAINER_SLOTS="2") as (other, at_work):
        answers = await other.assign(*jobs)
        await until(lambda: len(docker.client.containers()) == 2)
        for folder in (tmp_path / "node_agent" / "containers").iterdir():
            (folder / "go").touch()
        outcomes = [await other.outcome_of(each) for each in jobs[:2]]
        await nothing_left(docker, at_work, tmp_path)

    assert [answer.accepted for answer in answers] == [True, True, False]
    assert all(isinstance(outcome, WorkCompleted) for outcome in outcomes)
