"""Deployments on simulated GPUs: detector, ledger, agent and orchestrator are real, a program stands for vLLM."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.deploying import Deploying, runs
from tests.fake_engine import begun, fake_vllm
from tests.fake_ray import fake_ray, ray_begun
from tests.mesh_process import MeshProcess, mesh_process
from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator
from tests.unit.inference.planner.published import config

HEARTBEAT = {"RESOURCE_DETECTOR_HEARTBEAT_SECONDS": "0.5"}
"""A machine that is silent for three seconds is gone."""
SMALL, LARGE = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"


@contextmanager
def deploying_on(
    folder: Path, simulator: Simulator, machine: Machine, *starts: str, **more: str
) -> Iterator[Deploying]:
    simulator.show(machine)
    for name in (SMALL, LARGE):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text(json.dumps(config(name)))
    settings = {
        "ENGINE": "none",
        "ENGINE_PROGRAMS": f"vllm={fake_vllm(folder / 'vllm', *starts)}",
        "VLLM_MODELS_FOLDER": str(folder / "models"),
        "HF_HUB_OFFLINE": "true",
    }
    with mesh_process(folder / "data", **settings, **more, **simulator.settings) as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        made = Deploying(mesh, folder / "vllm")
        with made.client:
            yield made


@contextmanager
def second_machine(deploying: Deploying, simulator: Simulator, machine: Machine) -> Iterator[MeshProcess]:
    """With a detector, a ledger and an agent of its own."""
    folder = deploying.programs.with_name("second")
    own = replace(simulator, description=folder.with_suffix(".txt"))
    own.show(machine)
    inherited = {name: deploying.mesh.environment[name] for name in ("ENGINE", "ENGINE_PROGRAMS")}
    services = ("node_agent", "gpu_orchestrator", "resource_detector")
    with mesh_process(
        folder, NODE_ID="second", NATS_URL=deploying.mesh.nats_url, **inherited, **HEARTBEAT, **own.settings
    ) as mesh:
        mesh.start(("-m", "services", *services)).wait_ready(services)
        deploying.until_nodes(2)
        yield mesh


def nodes_of(told: dict[str, Any]) -> list[str]:
    return sorted(part["node_id"] for part in told["parts"])


def test_two_machines_of_four_a100_serve_one_model_together_and_the_other_takes_over_what_one_has_lost(
    tmp_path: Path, simulator: Simulator
):
    others = machines.A100_X4.gpus
    other = replace(
        machines.A100_X4, gpus=tuple(replace(gpu, uuid=machines.uuid(100 + n)) for n, gpu in enumerate(others))
    )
    with (
        deploying_on(tmp_path, simulator, machines.A100_X4, NODE_ID="first", **HEARTBEAT) as deploying,
        second_machine(deploying, simulator, other) as second,
    ):
        asked = {"device": "gpu", "max_model_len": 4096}
        deploying.deploy(model_name=LARGE, tensor_parallel_size=4, pipeline_parallel_size=2, **asked)
        ready = deploying.until_ready()
        assert nodes_of(ready) == ["first", "second"]
        assert [len(part["gpu_uuids"]) for part in ready["parts"]] == [4, 4]
        deploying.call("DELETE", "/instances/one")
        deploying.until_gone()
        assert deploying.claims() == []

        fake_ray(deploying.programs)
        division = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}
        deploying.deploy(model_name=LARGE, distributed_executor_backend="ray", **division, **asked)
        ready = deploying.until_ready()
        assert nodes_of(ready) == ["first", "second"]
        assert "--distributed-executor-backend" in begun(deploying.programs)[-1]["arguments"]
        clusters = ray_begun(deploying.programs)
        assert sorted(start["environment"]["CUDA_VISIBLE_DEVICES"] for start in clusters) == ["0,1,2,3", "0,1,2,3"]
        deploying.call("DELETE", "/instances/one")
        deploying.until_gone()
        assert deploying.claims() == []
        assert not any(runs(pid) for start in clusters for pid in (start["pid"], *start["children"]))

        deploying.deploy(model_name=SMALL, replicas=2, **asked)
        ready = deploying.until_ready()
        assert nodes_of(ready) == ["first", "second"]
        second.clean_up()
        again = deploying.until(lambda told: told["state"] == "READY" and nodes_of(told) == ["first", "first"])
        gpus = [uuid for part in again["parts"] for uuid in part["gpu_uuids"]]
        assert len(set(gpus)) == 2
        assert any("second is offline" in event for event in deploying.events())


def test_eight_h100_serve_two_models_side_by_side_and_the_next_plan_after_running_out_of_memory(
    tmp_path: Path, simulator: Simulator
):
    with deploying_on(tmp_path, simulator, machines.H100_X8, "ok", "oom_at_capture") as deploying:
        asked = {"device": "gpu", "max_model_len": 4096}
        deploying.deploy(model_name=LARGE, **asked)
        large = deploying.until_ready()
        deploying.deploy(instance_name="two", model_name=SMALL, **asked)
        small = deploying.until_ready("two")

        gpus = [set(part["gpu_uuids"]) for told in (large, small) for part in told["parts"]]
        assert (len(gpus[0]) >= 2, len(gpus[1]), gpus[0] & gpus[1]) == (True, 1, set())
        assert small["replicas"][0]["eased"]["max_num_seqs"] is not None
        assert {each["pid"] for each in deploying.claims()} == {told["parts"][0]["pid"] for told in (large, small)}
        assert begun(deploying.programs)[0]["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"

        os.kill(large["parts"][0]["pid"], signal.SIGKILL)
        deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 2)
        for name in ("one", "two"):
            deploying.call("DELETE", f"/instances/{name}")
            deploying.until_gone(name)
        assert deploying.claims() == []
        assert not any(runs(start["pid"]) for start in begun(deploying.programs))


def test_unlike_gpus_are_claimed_apart_for_one_process(tmp_path: Path, simulator: Simulator):
    with deploying_on(tmp_path, simulator, machines.MIXED) as deploying:
        deploying.deploy(
            model_name=SMALL, device="gpu", max_model_len=4096, tensor_parallel_size=1, pipeline_parallel_size=2
        )
        (part,) = deploying.until_ready()["parts"]
        first, second = sorted(deploying.claims(), key=lambda each: -each["required_mb"])
        assert first["required_mb"] > second["required_mb"] > 0
        assert {*first["gpu_uuids"], *second["gpu_uuids"]} == {*part["gpu_uuids"]}
        assert {first["pid"], second["pid"]} == {part["pid"]}
        stages = begun(deploying.programs)[0]["environment"]["VLLM_PP_LAYER_PARTITION"].split(",")
        assert int(stages[0]) > int(stages[1])
        deploying.call("DELETE", "/instances/one")
        deploying.until_gone()
        assert deploying.claims() == []
