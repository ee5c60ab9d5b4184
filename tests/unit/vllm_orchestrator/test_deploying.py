"""Instances on machines with many GPUs, and what becomes of them when machines and engines fail."""

import asyncio

import pytest

from libs.common.contracts.streams import VLLM_LOG
from libs.common.errors import Conflict
from tests.unit.vllm_orchestrator.house import A100, H100, LARGE, LLAMA, Card, Machine, house_of

RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24564, "8.9")
RTX_3060 = Card("NVIDIA GeForce RTX 3060", 12288, "8.6")


def value_of(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


async def test_eight_h100_serve_a_large_model_divided_over_few_of_them(tmp_path):
    node = Machine("dgx", [H100] * 8)
    async with house_of(tmp_path, node) as house, house.orchestrator():
        await house.deploy(model_name=LARGE, max_model_len=8192)
        ready = await house.until_ready()
        (asked,) = node.asked
        ranks = int(value_of(asked.arguments, "--tensor-parallel-size"))
        ranks *= int(value_of(asked.arguments, "--pipeline-parallel-size"))
        assert ranks == len(ready.parts[0].gpu_uuids) == len(asked.environment["CUDA_VISIBLE_DEVICES"].split(","))
        assert 2 <= ranks <= 4


async def test_two_unlike_gpus_get_stages_of_unlike_length(tmp_path):
    node = Machine("desk", [RTX_4090, RTX_3060])
    async with house_of(tmp_path, node) as house, house.orchestrator():
        await house.deploy(max_model_len=8192, tensor_parallel_size=1, pipeline_parallel_size=2)
        await house.until_ready()
        first, second = map(int, node.asked[0].environment["VLLM_PP_LAYER_PARTITION"].split(","))
        assert (first + second, first > second) == (32, True)


async def test_replicas_go_to_machines_of_their_own(tmp_path):
    nodes = [Machine(name, [H100] * 2) for name in ("a", "b")]
    async with house_of(tmp_path, *nodes) as house, house.orchestrator():
        await house.deploy(replicas=3)
        ready = await house.until_ready()
        assert sorted(part.node_id for part in ready.parts)[:2] in (["a", "a"], ["a", "b"])
        assert len({part.gpu_uuids for part in ready.parts}) == 3
        assert {part.node_id for part in ready.parts} == {"a", "b"}


async def test_two_nodes_serve_one_model_together_or_not_at_all(tmp_path):
    first, second = Machine("n1", [A100] * 4), Machine("n22", [A100] * 4)
    async with house_of(tmp_path, first, second) as house, house.orchestrator():
        second.refuses = True
        await house.deploy(model_name=LARGE, max_model_len=8192, tensor_parallel_size=4, pipeline_parallel_size=2)
        await house.until(lambda told: "somebody else" in told.problem)
        assert (first.asked, second.asked) == ([], [])
        async with asyncio.timeout(10):
            while first.held:
                await asyncio.sleep(0.02)

        second.refuses = False
        ready = await house.until_ready()
        assert [part.node_id for part in ready.parts] == ["n1", "n22"]
        head, other = first.asked[0], second.asked[0]
        for rank, asked in enumerate((head, other)):
            assert value_of(asked.arguments, "--nnodes") == "2"
            assert value_of(asked.arguments, "--node-rank") == str(rank)
            assert value_of(asked.arguments, "--master-addr") == "10.0.0.2"
        assert ("--headless" in head.arguments, "--headless" in other.arguments) == (False, True)
        assert (head.environment["VLLM_HOST_IP"], other.environment["VLLM_HOST_IP"]) == ("10.0.0.2", "10.0.0.3")
        assert ready.urls == ("http://n1:8000",)

        second.fail("crash")
        again = await house.until(lambda told: told.state == "READY" and told.generation > ready.generation)
        assert len(first.running()) == len(second.running()) == 1
        assert again.parts[0].rank == 0
        await house.ask(delete={"instance_name": "one"})
        await house.until_gone()
        assert (first.running(), second.running(), first.held, second.held) == ([], [], {}, {})


async def test_two_nodes_serve_one_model_over_ray(tmp_path):
    first, second = Machine("n1", [A100] * 4), Machine("n22", [A100] * 4)
    async with house_of(tmp_path, first, second) as house, house.orchestrator():
        asked = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "distributed_executor_backend": "ray"}
        await house.deploy(model_name=LARGE, max_model_len=8192, **asked)
        ready = await house.until_ready()

        head, other = first.asked[0], second.asked[0]
        assert head.ray is not None
        assert other.ray is not None
        assert (head.serves, other.serves, other.arguments) == (True, False, ())
        assert value_of(head.arguments, "--distributed-executor-backend") == "ray"
        assert head.ray.address == other.ray.address == f"10.0.0.2:{value_of(head.ray.arguments, '--port')}"
        assert [(each.ray.nodes, each.ray.gpus) for each in (head, other) if each.ray] == [(2, 8), (2, 8)]
        secrets = {each.environment["RAY_AUTH_TOKEN"] for each in (head, other)}
        assert [len(each) for each in secrets] == [64]
        assert not any(secret in ready.model_dump_json() for secret in secrets)
        assert ready.urls == ("http://n1:8000",)

        second.fail("crash")
        await house.until(lambda told: told.state == "READY" and told.generation > ready.generation)
        assert first.asked[1].environment["RAY_AUTH_TOKEN"] not in secrets


async def test_a_node_that_is_lost_is_replaced_and_its_engine_ends_should_it_come_back(tmp_path):
    first, second = Machine("a", [H100]), Machine("b", [H100])
    async with house_of(tmp_path, first, second) as house:
        async with house.orchestrator():
            await house.deploy()
            home = (await house.until_ready()).parts[0].node_id
            lost, other = (first, second) if home == "a" else (second, first)
            lost.gone = True
            moved = await house.until(lambda told: told.state == "READY" and told.parts[0].node_id == other.node_id)
            assert any(f"node {home} is offline" in each.message for each in await house.events())
            assert len(lost.running()) == 1

        async with house.orchestrator("later"):  # another one knows it too
            lost.gone = False
            async with asyncio.timeout(10):
                while lost.running() or lost.held:
                    await asyncio.sleep(0.02)
            assert (await house.until_ready()).generation == moved.generation
            assert len(other.running()) == 1


async def test_out_of_memory_at_the_start_leads_to_the_next_plan(tmp_path):
    first, second = Machine("a", [H100], starts=["oom_at_load"]), Machine("b", [H100], starts=["oom_at_load"])
    async with house_of(tmp_path, first, second) as house, house.orchestrator():
        await house.deploy()
        ready = await house.until_ready()
        assert {each.node_id for each in (first, second) if each.asked} == {"a", "b"}
        assert "out of memory while it loaded" in " ".join(each.message for each in await house.events())
        assert (ready.generation, ready.replicas[0].failure) == (3, "oom_at_load")


async def test_a_change_stops_the_old_engine_first_where_there_is_room_for_one_only(tmp_path):
    node = Machine("a", [H100])
    async with house_of(tmp_path, node) as house, house.orchestrator():
        await house.deploy()
        await house.until_ready()
        await house.deploy(max_model_len=2048)
        told = await house.until(lambda told: told.generation == 2 and len(told.replicas) == 1 and told.urls)
        assert len(node.running()) == 1
        assert value_of(node.asked[-1].arguments, "--max-model-len") == "2048"
        assert [each.number for each in told.replicas] == [1]
        assert any("no room for the new one" in each.message for each in await house.events())


async def test_a_change_that_could_never_fit_is_refused_and_ends_nothing(tmp_path):
    node = Machine("a", [H100])
    async with house_of(tmp_path, node) as house, house.orchestrator():
        await house.deploy()
        ready = await house.until_ready()
        with pytest.raises(Conflict, match="does not fit"):
            await house.deploy(model_name=LARGE)
        assert (await house.until_ready()).generation == ready.generation
        assert (await house.until_ready()).request.model_name == LLAMA


async def test_another_orchestrator_goes_on_where_the_first_was_killed(tmp_path):
    node = Machine("a", [H100] * 2)
    async with house_of(tmp_path, node) as house:
        async with house.orchestrator("first", VLLM_CHECKPOINT_RECORDS=5) as running:
            await house.deploy(replicas=2)
            await house.until_ready()
            for name in ("two", "three"):
                await house.deploy(name, replicas=1, auto_start=False)
                await house.ask(delete={"instance_name": name})
                await house.until_gone(name)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        before = len(node.asked)
        async with house.orchestrator("second"):
            told = await house.until_ready()
            assert (len(node.asked), told.generation, len(told.urls)) == (before, 2, 2)
            assert (await house.events())[-1].state == "READY"
            state = await house.bus.stream_state(VLLM_LOG)
            assert state.first_sequence > 5


async def test_after_nats_lost_its_disk_models_are_deployed_again(tmp_path):
    node = Machine("a", [H100] * 2)
    async with house_of(tmp_path, node) as house, house.orchestrator() as running:
        await house.deploy()
        await house.until_ready()
        house.server.stop()
        house.server.start(emptied=True)

        await house.deploy("two")
        await house.until_ready("two")
        assert not running.done()


async def test_a_leader_that_was_replaced_changes_nothing_more(tmp_path):
    node = Machine("a", [H100])
    async with house_of(tmp_path, node) as house, house.orchestrator("first"):
        await house.deploy()
        await house.until_ready()
        async with house.orchestrator("second"):
            await house.ask(delete={"instance_name": "one"})
            await house.until_gone()
            await house.deploy()
            await house.until_ready()
            assert len(node.running()) == 1
            assert len(node.asked) == 2


async def test_what_is_for_gpus_waits_for_one_and_never_goes_to_a_processor_instead(tmp_path):
    node, plain = Machine("a", [H100]), Machine("plain", [])
    async with house_of(tmp_path, node, plain) as house, house.orchestrator():
        await house.deploy()
        await house.until_ready()
        with pytest.raises(Conflict, match="does not fit"):
            await house.deploy("two")
        assert plain.asked == []
