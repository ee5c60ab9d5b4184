"""What the processes of an instance claim on their nodes: GPUs' memory, RAM, and the port where they meet."""

import pytest
from pydantic import ValidationError

from libs.common.contracts.vllm_instances import DeployRequest, EngineRuntime
from libs.common.contracts.vllm_orchestrator import PlanAnswer, PlannedCommand, PlannedMemory
from services.vllm_orchestrator.placing import HOST_MB_PER_GPU, MIB, RAY_MB, contained, guarded, place_of_plan


def row(node_id: str, number: int, budget_mb: int) -> PlannedMemory:
    sizes = dict.fromkeys(
        ("weights_bytes", "kv_cache_bytes", "activation_bytes", "cuda_graph_bytes", "non_torch_bytes"), 0
    )
    whole = 80_000 * MIB
    return PlannedMemory(
        gpu_uuid=f"{node_id}-{number}",
        node_id=node_id,
        total_bytes=whole,
        free_bytes=whole,
        budget_bytes=budget_mb * MIB,
        **sizes,
    )


def command(node_id: str, *arguments: str) -> PlannedCommand:
    return PlannedCommand(node_id=node_id, vllm_args=arguments, environment={})


def test_each_node_claims_of_each_gpu_what_it_takes_and_a_share_of_its_ram_for_each_gpu():
    rows = (row("a", 0, 1000), row("a", 1, 2000), row("b", 0, 3000))
    answer = PlanAnswer(fits=True, replicas=1, memory_per_gpu=rows, commands=(command("a"), command("b")))

    first, second = place_of_plan("one", 1, answer).parts

    assert (first.ram_mb, first.gpu_uuids) == (2 * HOST_MB_PER_GPU, ("a-0", "a-1"))
    assert [(each.gpu_uuids, each.required_mb) for each in first.claims] == [(("a-0",), 1000), (("a-1",), 2000)]
    assert len({each.reservation_id for each in first.claims}) == 2
    assert (second.required_mb, second.ram_mb, second.gpu_uuids) == (3000, HOST_MB_PER_GPU, ("b-0",))


def test_an_engine_on_the_processor_claims_the_ram_that_is_planned():
    answer = PlanAnswer(fits=True, replicas=1, ram_bytes=5 * MIB + 1, commands=(command("a"),))

    (part,) = place_of_plan("one", 1, answer).parts

    assert (part.required_mb, part.ram_mb, part.gpu_uuids) == (0, 6, ())


def test_the_nodes_of_one_start_meet_at_one_port_and_those_of_the_next_elsewhere():
    together = ("serve", "--master-port", "29501", "--headless")
    answer = PlanAnswer(fits=True, replicas=1, commands=(command("a", *together), command("b", *together)))

    starts = [place_of_plan("one", generation, answer).parts for generation in (1, 2)]

    ports = [{part.arguments[2] for part in parts} for parts in starts]
    assert [len(each) for each in ports] == [1, 1]
    assert ports[0] != ports[1]
    assert all(29501 <= int(port) <= 30500 for each in ports for port in each)
    assert starts[0][0].arguments[0::3] == ("serve", "--headless")


def test_over_ray_the_nodes_of_one_start_meet_at_one_port_with_a_secret_and_claim_what_ray_takes():
    ray = (("start", "--head", "--port", "6379", "--block"), ("start", "--address", "10.0.0.1:6379", "--block"))
    environment = {"RAY_ADDRESS": "10.0.0.1:6379", "VLLM_HOST_IP": "10.0.0.2"}
    commands = tuple(
        PlannedCommand(node_id=name, vllm_args=(), environment=environment, ray_args=words)
        for name, words in zip("ab", ray, strict=True)
    )
    rows = (row("a", 0, 1000), row("b", 0, 1000))
    answer = PlanAnswer(fits=True, replicas=1, memory_per_gpu=rows, commands=commands)

    head, other = guarded(place_of_plan("one", 1, answer).parts, "secret")

    port = head.ray[3]
    assert 29501 <= int(port) <= 30500
    assert other.ray[2] == f"10.0.0.1:{port}"
    for each in (head, other):
        assert (each.environment["RAY_ADDRESS"], each.environment["VLLM_HOST_IP"]) == (f"10.0.0.1:{port}", "10.0.0.2")
        assert (each.environment["RAY_AUTH_MODE"], each.environment["RAY_AUTH_TOKEN"]) == ("token", "secret")
        assert each.ram_mb == HOST_MB_PER_GPU + RAY_MB


def test_without_ray_there_is_no_secret():
    answer = PlanAnswer(fits=True, replicas=1, ram_bytes=MIB, commands=(command("a"),))

    parts = place_of_plan("one", 1, answer).parts
    assert guarded(parts, "secret") == parts


def test_in_containers_an_engine_has_the_image_that_was_asked_for_or_that_of_the_version_that_was_planned():
    answer = PlanAnswer(fits=True, replicas=1, ram_bytes=MIB, commands=(command("a"),))
    parts = place_of_plan("one", 1, answer).parts
    asked = DeployRequest(model_name="m", instance_name="one", runtime=EngineRuntime.CONTAINER)

    assert contained(parts, asked, "0.33")[0].image == "vllm/vllm-openai:v0.33.0"
    assert contained(parts, asked.model_copy(update={"image": "ours:1"}), "0.33")[0].image == "ours:1"
    process = asked.model_copy(update={"runtime": EngineRuntime.PROCESS})
    assert contained(parts, process, "0.33")[0].image == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": "process", "image": "ours:1"},
        {"runtime": "container", "engine": "llama.cpp"},
        {"runtime": "container", "distributed_executor_backend": "ray"},
    ],
)
def test_what_does_not_go_with_containers_is_refused(changes: dict[str, str]):
    with pytest.raises(ValidationError):
        DeployRequest.model_validate({"model_name": "m", "instance_name": "one", **changes})
