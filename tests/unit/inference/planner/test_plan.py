"""The plan as a document: commands, memory of every GPU, and what to change where nothing fits."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.inference.planner.changes import Question
from libs.inference.planner.command import Backend, Naming
from libs.inference.planner.devices import Gpu, Node, bandwidth
from libs.inference.planner.goal import Goal, Strategy
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Asked
from libs.inference.planner.plan import Confidence, Plan, plan
from libs.inference.planner.versions import Engine
from tests.unit.inference.planner.machines import node, nodes
from tests.unit.inference.planner.published import facts

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"


def _question(name: str, *machines: Node, asked: Asked | None = None, **goal: object) -> Question:
    return Question(
        facts=facts(name),
        asked=asked or Asked(max_model_len=8192),
        engine=Engine(),
        nodes=machines,
        goal=Goal(**goal),  # type: ignore[arg-type]
    )


def _plan(name: str, *machines: Node, device: str | None = None, asked: Asked | None = None, **goal: object) -> Plan:
    return plan(_question(name, *machines, asked=asked, **goal), Naming(model_name=name), device=device)


def _value(arguments: tuple[str, ...], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_the_command_says_everything_that_was_chosen():
    found = _plan(LLAMA, node("a", 24), asked=Asked(max_model_len=8192, kv_cache_dtype="fp8", enforce_eager=True))

    (command,) = found.replicas[0].commands
    assert command.arguments[0] == LLAMA
    assert _value(command.arguments, "--tensor-parallel-size") == "1"
    assert _value(command.arguments, "--gpu-memory-utilization") == "0.92"
    assert _value(command.arguments, "--max-model-len") == "8192"
    assert _value(command.arguments, "--max-num-seqs") == "256"
    assert _value(command.arguments, "--max-num-batched-tokens") == "2048"
    assert _value(command.arguments, "--kv-cache-dtype") == "fp8"
    assert "--enforce-eager" in command.arguments
    assert command.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}


def test_every_node_but_the_first_starts_without_a_door():
    machines = [node(name, *[80] * 8, linked=True) for name in ("a", "b")]

    head, other = _plan(DEEPSEEK, *machines).replicas[0].commands
    assert "--headless" not in head.arguments
    assert "--headless" in other.arguments
    assert [_value(each.arguments, "--node-rank") for each in (head, other)] == ["0", "1"]
    assert _value(other.arguments, "--master-addr") == head.node_id
    assert _value(head.arguments, "--nnodes") == "2"


def test_over_ray_every_node_has_its_part_of_the_cluster_and_the_first_alone_the_engine():
    machines = [replace(node(name, *[80] * 8, linked=True), address=f"10.0.0.{n}") for n, name in enumerate("ab", 1)]
    naming = Naming(model_name=DEEPSEEK, backend=Backend.RAY)

    found = plan(_question(DEEPSEEK, *machines), naming).replicas[0]
    head, other = found.commands
    assert _value(head.arguments, "--distributed-executor-backend") == "ray"
    assert "--nnodes" not in head.arguments
    assert other.arguments == ()
    assert head.ray[:4] == ("start", "--head", "--port", "6379")
    assert other.ray[:3] == ("start", "--address", "10.0.0.1:6379")
    for number, each in enumerate((head, other), 1):
        address = f"10.0.0.{number}"
        assert (_value(each.ray, "--node-ip-address"), each.environment["VLLM_HOST_IP"]) == (address, address)
        assert (_value(each.ray, "--num-gpus"), each.environment["RAY_ADDRESS"]) == ("8", "10.0.0.1:6379")
        assert "--block" in each.ray


def test_over_ray_one_machine_has_a_cluster_of_its_own_too():
    (command,) = (
        plan(_question(LLAMA, node("a", 24)), Naming(model_name=LLAMA, backend=Backend.RAY)).replicas[0].commands
    )

    assert "--head" in command.ray
    assert command.environment["RAY_ADDRESS"] == "a:6379"


def test_a_partition_of_ones_own_is_in_the_environment():
    gpus = tuple(
        Gpu(uuid=name, node_id="m", total=gib * GIB, free=gib * GIB, name=name, index=index)
        for index, (name, gib) in enumerate((("RTX 4090", 24), ("RTX 3060", 12)))
    )
    found = _plan("Qwen/Qwen2.5-14B-Instruct", Node(node_id="m", gpus=gpus))

    partition = found.replicas[0].commands[0].environment["VLLM_PP_LAYER_PARTITION"]
    assert sum(map(int, partition.split(","))) == 48
    assert any(partition.replace(",", ", ") in reason for reason in found.reasons)


def test_an_old_gpu_gets_half_precision():
    found = _plan("Qwen/Qwen2.5-1.5B-Instruct", node("t", 16, gpu="Tesla T4", capability=(7, 5)))

    assert _value(found.replicas[0].commands[0].arguments, "--dtype") == "half"


def test_where_nothing_fits_three_changes_that_would_are_told():
    found = _plan(LLAMA, node("a", 24), asked=Asked(max_model_len=131072))

    assert not found.fits
    assert "To serve at least one request" in found.missing
    assert [change.option for change in found.changes] == ["max_model_len", "quantization", "nodes"]
    assert int(found.changes[0].value) < 131072


def test_a_change_that_is_told_fits():
    shorter = _plan(LLAMA, node("a", 24), asked=Asked(max_model_len=131072)).changes[0]

    assert _plan(LLAMA, node("a", 24), asked=Asked(max_model_len=int(shorter.value))).fits
    assert not _plan(LLAMA, node("a", 24), asked=Asked(max_model_len=int(shorter.value) + 256)).fits


def test_a_machine_without_a_gpu_serves_on_its_processor():
    found = _plan("Qwen/Qwen2.5-0.5B-Instruct", Node(node_id="c", ram=16 * GIB, threads=8))

    assert found.strategy is Strategy.CPU
    assert found.on_cpu is not None
    assert found.on_cpu.ram <= 16 * GIB
    (command,) = found.on_cpu.commands
    assert command.environment == {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-7"}


def test_a_processor_does_not_run_every_quantisation():
    found = _plan("openai/gpt-oss-20b", Node(node_id="c", ram=64 * GIB))

    assert not found.fits
    assert "mxfp4" in found.missing


@pytest.mark.parametrize("machine", [Node(node_id="c", ram=8 * GIB), Node(node_id="c")])
def test_a_machine_with_too_little_of_anything_says_so(machine: Node):
    found = _plan(LLAMA, machine)

    assert not found.fits
    assert "GiB" in found.missing or "RAM" in found.missing


@pytest.mark.parametrize(
    ("name", "machine", "confidence"),
    [
        (LLAMA, node("a", 24), Confidence.HIGH),
        (LLAMA, node("a", 80, used=50), Confidence.MEDIUM),
        ("CohereForAI/c4ai-command-r-v01", node("a", *[80] * 4), Confidence.LOW),
    ],
)
def test_a_plan_says_how_much_of_it_is_known(name: str, machine: Node, confidence: Confidence):
    assert _plan(name, machine).confidence is confidence


@settings(max_examples=40, deadline=None)
@given(nodes(), st.sampled_from((LLAMA, "openai/gpt-oss-20b", "Qwen/Qwen2.5-14B-Instruct")))
def test_the_memory_table_of_every_gpu_adds_up_to_its_budget(machines: list[Node], name: str):
    question = _question(name, *machines)

    for replica in plan(question, Naming(model_name=name)).replicas:
        for placement in replica.placements:
            memory = placement.memory
            parts = memory.weights + memory.kv_cache + memory.activation + memory.graphs + memory.non_torch
            assert parts == memory.budget <= memory.free


def test_a_plan_for_a_part_of_a_gpu_says_what_is_not_sure():
    part = replace(node("m", 40, gpu="NVIDIA A100-SXM4-80GB MIG 3g.40gb").gpus[0], uuid="MIG-1")
    found = _plan(LLAMA, Node(node_id="m", gpus=(part,)))

    assert found.confidence is Confidence.LOW
    assert found.replicas[0].commands[0].environment["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    assert any("read only numbers" in reason for reason in found.reasons)


def test_a_part_of_a_gpu_has_a_part_of_its_bandwidth():
    whole, part = bandwidth("NVIDIA A100-SXM4-80GB"), bandwidth("NVIDIA A100-SXM4-80GB MIG 3g.40gb")

    assert (whole, part) == (2039 * 10**9, 2039 * 10**9 // 2)
