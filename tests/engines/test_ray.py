"""A real Ray under two agents. vLLM's CPU backend does not run over it, so a small program asks it for ranks instead,
on machines with simulated GPUs."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from libs.inference.planner.on_cpu import NO_RAY
from tests.deploying import Deploying, runs
from tests.engines.conftest import ENVIRONMENT
from tests.engines.test_vllm import head_of, processes_of
from tests.integration.vllm_orchestrator.test_on_simulated_gpus import SMALL, deploying_on, nodes_of, second_machine
from tests.nvml import machines
from tests.nvml.fixtures import nvml_library, simulator
from tests.nvml.simulator import Simulator
from tools.free_ports import free_ports

__all__ = ["nvml_library", "simulator"]

DRIVER = Path(__file__).with_name("ray_driver.py")
RAY = ENVIRONMENT / "bin" / "ray"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    """A cluster that somebody else has on the machine."""
    (port,) = free_ports(1)
    folder = Path(tmp_path_factory.getbasetemp().parent) / f"stranger-{port}"
    words = ["start", "--head", "--port", str(port), "--temp-dir", str(folder), "--include-dashboard", "false"]
    child = subprocess.Popen(
        [RAY, *words, "--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", "1", "--block"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield psutil.Process(child.pid)
    finally:
        for pid in processes_of(child.pid):
            os.kill(pid, signal.SIGKILL)
        child.wait()
        subprocess.run(["rm", "-rf", folder], check=True)


def with_ray(deploying: Deploying) -> None:
    program = deploying.programs / "vllm"
    program.write_text(f'#!/bin/sh\nexec {ENVIRONMENT}/bin/python {DRIVER} "$@"\n')
    (deploying.programs / "ray").symlink_to(RAY)


def names_of(pids: list[int]) -> set[str]:
    return {psutil.Process(pid).name() for pid in pids}


def test_a_cluster_of_two_machines_begins_with_an_engine_and_ends_with_it(
    tmp_path: Path, simulator: Simulator, strangers: psutil.Process
):
    one = machines.Machine(gpus=machines.A100_X4.gpus[:1])
    with deploying_on(tmp_path, simulator, one, NODE_ID="first") as deploying:
        deploying.patience = 120
        with_ray(deploying)
        other = machines.Machine(gpus=(machines.A100_X4.changed(0, uuid=machines.uuid(100)).gpus[0],))
        with second_machine(deploying, simulator, other):
            asked = {"device": "gpu", "max_model_len": 4096, "tensor_parallel_size": 1, "pipeline_parallel_size": 2}
            deploying.deploy(model_name=SMALL, distributed_executor_backend="ray", drain_seconds=0, **asked)
            ready = deploying.until_ready()
            assert nodes_of(ready) == ["first", "second"]
            ranks = httpx.get(f"{head_of(ready)['url']}/ranks", trust_env=False).json()
            assert len({rank["node"] for rank in ranks}) == 2
            assert [rank["gpus"] for rank in ranks] == ["0", "0"]
            first = [pid for part in ready["parts"] for pid in processes_of(part["pid"])]
            assert {"raylet", "gcs_server"} <= names_of(first)
            assert {rank["pid"] for rank in ranks} <= {*first}

            os.kill(head_of(ready)["pid"], signal.SIGKILL)
            again = deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 2)
            assert [pid for pid in first if runs(pid)] == []
            second = [pid for part in again["parts"] for pid in processes_of(part["pid"])]
            deploying.call("DELETE", "/instances/one")
            deploying.until_gone()
            assert [pid for pid in second if runs(pid)] == []
            assert deploying.claims() == []
    assert strangers.status() != psutil.STATUS_ZOMBIE
    assert "raylet" in names_of(processes_of(strangers.pid))


def test_vllm_on_a_processor_does_not_run_over_ray():
    """What a plan says of that is vLLM's own."""
    (package,) = ENVIRONMENT.glob("lib/python*/site-packages/vllm")

    assert "ray_device_key" not in (package / "platforms" / "cpu.py").read_text()
    assert "does not support ray" in (package / "v1" / "executor" / "ray_utils.py").read_text()
    assert "does not run over Ray" in NO_RAY
