"""Engines in containers of a real Docker engine, whose image has a small program in vLLM's place."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.contracts.engine_hosting import StartEngine, StopEngine
from libs.common.contracts.node_registry import EngineState
from libs.common.errors import Forbidden, Malformed, NotFound
from services.node_agent.hosted_docker import DockerEngines
from services.node_agent.hosted_door import EngineAddress
from services.node_agent.model import ContainedEngine
from tests.docker_process import ENGINE_IMAGE, DockerProcess
from tests.integration.node_agent.conftest import runs, until
from tests.integration.node_agent.test_hosting import Host, start_of

CONTAINER = {"image": ENGINE_IMAGE}


def host_on(docker: DockerProcess, folder: Path, *images: str) -> Host:
    containers = DockerEngines(
        docker.address,
        node_id="node-1",
        images=images or ("mesh-test/*",),
        folders=(folder,),
        cache=folder / "cache",
        hub_token="",
    )
    return Host(folder / "engines", Path("/bin/false"), EngineAddress(api_key="s3cret"), containers)


@asynccontextmanager
async def hosted(docker: DockerProcess, folder: Path) -> AsyncIterator[Host]:
    made = host_on(docker, folder)
    try:
        yield made
    finally:
        await made.close()


def contained(**changes: Any) -> StartEngine:
    return start_of(container=CONTAINER, **changes)


async def test_an_engine_in_a_container_serves_and_leaves_nothing(docker: DockerProcess, tmp_path: Path):
    async with hosted(docker, tmp_path) as made:
        environment = {"CUDA_VISIBLE_DEVICES": "3", "VLLM_PP_LAYER_PARTITION": "1,1"}
        await made.hosting.start(contained(environment=environment))
        ready = await made.until_state(EngineState.READY)

        assert httpx.get(f"{ready.url}/health", trust_env=False).status_code == httpx.codes.OK
        shown = docker.client.inspect_container(docker.names()[0])
        assert made.committed == [("tiny", shown["Id"])]
        assert shown["Config"]["Cmd"][:3] == ["m", "--max-model-len", "64"]
        told = dict(each.split("=", 1) for each in shown["Config"]["Env"])
        assert "CUDA_VISIBLE_DEVICES" not in told
        assert (told["VLLM_PP_LAYER_PARTITION"], told["VLLM_API_KEY"]) == ("1,1", "s3cret")
        assert shown["HostConfig"]["ShmSize"] == 16 * 2**30
        assert {f"{tmp_path}/cache:/cache:rw", f"{tmp_path}:{tmp_path}:ro"} == {*shown["HostConfig"]["Binds"]}
        await until(lambda: "this is the engine" in made.shown[0].log(1000))

        await made.hosting.stop(StopEngine(instance="tiny", generation=1))
        assert (await made.until_ended()).state is EngineState.STOPPED
        assert docker.names() == []


async def test_an_engine_in_a_container_that_fails_tells_its_exit_code_and_last_words(
    docker: DockerProcess, tmp_path: Path
):
    async with hosted(docker, tmp_path) as made:
        await made.hosting.start(contained(arguments=("fail", "error: unrecognized arguments: --no-such")))
        failed = await made.until_state(EngineState.FAILED)

        assert failed.exit_code == 2
        assert "unrecognized arguments: --no-such" in failed.last_words
        assert docker.names() == []


async def test_an_agent_that_was_killed_finds_its_container_again(docker: DockerProcess, tmp_path: Path):
    async with hosted(docker, tmp_path) as first:
        await first.hosting.start(contained())
        ready = await first.until_state(EngineState.READY)
        (name,) = docker.names()
        await first.forget()
        second = host_on(docker, tmp_path)
        try:
            again = await second.until_state(EngineState.READY)
            assert (again.pid, again.url, docker.names()) == (ready.pid, ready.url, [name])
        finally:
            await second.close()
        assert docker.names() == []


async def test_a_container_that_nobody_follows_is_removed_by_the_next_agent(docker: DockerProcess, tmp_path: Path):
    async with hosted(docker, tmp_path) as first:
        await first.hosting.start(contained())
        ready = await first.until_state(EngineState.READY)
        await first.forget()
        os.kill(ready.pid or 0, signal.SIGKILL)
        await until(lambda: not runs(ready.pid or 0))
        assert len(docker.names()) == 1
        second = host_on(docker, tmp_path)
        try:
            assert (await second.one()).state is EngineState.FAILED
            assert docker.names() == []
        finally:
            await second.close()


async def test_without_nvidias_runtime_gpus_are_asked_for_by_their_uuids_and_the_refusal_is_a_sentence(
    docker: DockerProcess, tmp_path: Path
):
    async with hosted(docker, tmp_path) as made:
        with pytest.raises(Forbidden, match=r"install the NVIDIA Container Toolkit .*could not select device driver"):
            await made.hosting.start(start_of(container={**CONTAINER, "gpu_uuids": ["GPU-a", "GPU-b"]}))

        assert docker.names() == []


async def test_what_the_owner_does_not_allow_or_is_not_there_is_refused_and_leaves_nothing(
    docker: DockerProcess, tmp_path: Path
):
    async with hosted(docker, tmp_path) as made:
        with pytest.raises(Forbidden, match="ENGINE_IMAGES allows: mesh-test"):
            await made.hosting.start(start_of(container={"image": "other/image:1"}))
        with pytest.raises(NotFound, match="docker pull mesh-test/none:1"):
            await made.hosting.start(start_of(container={"image": "mesh-test/none:1"}))
        ray = {"arguments": ("start",), "address": "a:1"}
        with pytest.raises(Malformed):
            await made.hosting.start(contained(ray=ray))
        assert docker.names() == []


async def test_where_no_image_is_allowed_there_are_no_engines_in_containers(tmp_path: Path):
    made = Host(tmp_path / "engines", Path("/bin/false"))
    try:
        with pytest.raises(Forbidden, match="ENGINE_IMAGES"):
            await made.hosting.start(contained())
    finally:
        await made.close()


def test_a_device_request_names_gpus_by_uuid(docker: DockerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[Any] = []

    class Client:
        def create_host_config(self, **options: Any) -> dict[str, Any]:
            asked.append(options["device_requests"])
            return {}

        def create_container(self, *_: Any, **__: Any) -> dict[str, str]:
            return {"Id": "1"}

        def start(self, _: str) -> None:
            return

    engines = DockerEngines(docker.address, node_id="n", images=("*",), folders=(), cache=tmp_path, hub_token="")
    engine = ContainedEngine(name="e", image="i", command=(), environment={}, gpu_uuids=("GPU-a", "GPU-b"))
    engines._begun(Client(), engine)  # type: ignore[arg-type]  # what it asks of Docker is looked at
    ((request,),) = asked
    assert (request["DeviceIDs"], request["Capabilities"]) == (["GPU-a", "GPU-b"], [["gpu"]])
