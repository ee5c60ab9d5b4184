"""A deployment in a container of a real Docker engine, through the whole mesh. A small program is in vLLM's place."""

import os
import signal
from pathlib import Path

import httpx

from tests.docker_process import ENGINE_IMAGE, docker_process
from tests.e2e.test_deployments import deploying_with


def test_a_model_is_served_from_a_container_that_holds_its_memory_and_comes_back(tmp_path: Path):
    with (
        docker_process() as docker,
        deploying_with(tmp_path, ENGINE_IMAGES="mesh-test/*", DOCKER_HOST=docker.address) as deploying,
    ):
        deploying.deploy(runtime="container", image=ENGINE_IMAGE, max_model_len=512)
        ready = deploying.until_ready()
        (name,) = docker.names()
        (claim,) = deploying.claims()
        assert (claim["state"], claim["pid"]) == ("committed", None)
        assert claim["container_id"] == docker.client.inspect_container(name)["Id"]
        assert httpx.get(f"{ready['urls'][0]}/health", trust_env=False).status_code == httpx.codes.OK
        deploying.until(lambda _: "this is the engine" in deploying.log())

        os.kill(docker.client.inspect_container(name)["State"]["Pid"], signal.SIGKILL)
        deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 2)
        assert any("killed" in event for event in deploying.events())
        assert docker.names() != [name]

        deploying.call("DELETE", "/instances/one?drain_seconds=0")
        deploying.until_gone()
        assert (docker.names(), deploying.claims()) == ([], [])

        deploying.deploy(runtime="container", image="mesh-test/none:1", max_model_len=512)
        deploying.until(lambda told: "docker pull mesh-test/none:1" in told["problem"])
        deploying.call("DELETE", "/instances/one")
        deploying.until_gone()
        assert (docker.names(), deploying.claims()) == ([], [])
