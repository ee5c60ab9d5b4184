"""Machines without GPUs: whose RAM holds a model, and which cores each rank gets."""

import pytest

from libs.inference.planner.changes import Question
from libs.inference.planner.command import Backend, Naming
from libs.inference.planner.devices import Node
from libs.inference.planner.goal import Goal
from libs.inference.planner.memory import GIB
from libs.inference.planner.on_cpu import EAGER_STAGES, NO_RAY, CpuPlan
from libs.inference.planner.options import Asked
from libs.inference.planner.plan import Plan, plan
from libs.inference.planner.versions import Engine
from tests.unit.inference.planner.published import facts

SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"


def machine(name: str, gib: int, threads: int = 8) -> Node:
    return Node(node_id=name, ram=gib * GIB, threads=threads, address=f"10.0.0.{ord(name)}")


def planned(found: Plan) -> CpuPlan:
    assert found.on_cpu is not None, found.missing
    return found.on_cpu


def on(
    *nodes: Node, model: str = SMALL, asked: Asked | None = None, backend: Backend = Backend.MP, **goal: int
) -> Plan:
    question = Question(
        facts=facts(model),
        asked=asked or Asked(max_model_len=2048),
        engine=Engine(),
        nodes=nodes,
        goal=Goal(**goal),
    )
    return plan(question, Naming(model_name=model, backend=backend))


def test_ranks_of_one_machine_get_cores_and_a_cache_each():
    one, two = planned(on(machine("a", 32))), planned(on(machine("a", 32), tensor=2))

    (command,) = two.commands
    assert command.environment == {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-3|4-7"}
    assert command.arguments[-2:] == ("--tensor-parallel-size", "2")
    assert two.kv_cache_tokens == pytest.approx(2 * one.kv_cache_tokens, rel=0.01)
    assert GIB < two.ram - one.ram < 3 * GIB


def test_processors_do_not_serve_over_ray_and_that_is_all_that_is_in_the_way():
    found = on(machine("a", 32), backend=Backend.RAY)

    assert (found.fits, found.missing) == (False, NO_RAY)
    assert [change.option for change in found.changes] == ["distributed_executor_backend"]


def test_cores_that_do_not_divide_are_all_given_away():
    (command,) = planned(on(machine("a", 64, threads=3), tensor=2)).commands
    assert command.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0|1-2"


def test_more_ranks_than_cores_are_refused():
    found = on(machine("a", 64, threads=1), tensor=2)
    assert found.missing == "2 ranks want a core each, and a has 1."


def test_what_vllm_does_not_divide_is_refused_in_its_words():
    found = on(machine("a", 64), tensor=3)
    assert "attention heads (14) must be divisible by tensor parallel size (3)" in found.missing


def test_stages_go_to_machines_of_their_own_where_there_are_enough():
    found = planned(on(machine("a", 16), machine("b", 16), pipeline=2))

    head, other = found.commands
    assert (head.node_id, other.node_id) == ("a", "b")
    together = ("--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.97", "--master-port", "29501")
    assert other.arguments[-9:] == (*together, "--headless")
    assert "--headless" not in head.arguments
    assert head.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-7"
    assert head.environment["VLLM_HOST_IP"] == "10.0.0.97"


def test_stages_share_a_machine_where_there_are_not_enough_or_the_next_is_too_small():
    (alone,) = planned(on(machine("a", 32), pipeline=2)).commands
    (beside,) = planned(on(machine("a", 32), machine("b", 2), pipeline=2)).commands
    assert alone.arguments == beside.arguments
    assert alone.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-3|4-7"


def test_a_model_too_large_for_one_machine_is_divided_over_as_few_as_hold_it():
    machines = [machine(name, 14) for name in "abcd"]
    found = planned(on(*machines, model=LARGE))

    assert len(found.commands) == 2
    assert found.parallel.pipeline == 2
    assert found.ram <= 14 * GIB
    assert not on(machines[0], model=LARGE).fits


def test_an_eager_pipeline_is_refused_with_what_to_do():
    eager = Asked(max_model_len=2048, enforce_eager=True)
    assert on(machine("a", 64), asked=eager, pipeline=2).missing == EAGER_STAGES
    (command,) = planned(on(machine("a", 64), asked=eager, tensor=2)).commands
    assert "--enforce-eager" in command.arguments


@pytest.mark.parametrize("threads", [0, 4])
def test_a_machine_that_does_not_tell_its_cores_is_left_to_vllm(threads: int):
    (command,) = planned(on(machine("a", 16, threads))).commands
    assert ("VLLM_CPU_OMP_THREADS_BIND" in command.environment) == bool(threads)
