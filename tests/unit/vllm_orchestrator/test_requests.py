"""What is asked over NATS: the words of REST, whichever orchestrator hears them."""

import pytest

from libs.common.contracts.vllm_requests import VllmRequest
from libs.common.errors import Conflict, NotFound
from tests.unit.vllm_orchestrator.house import H100, LLAMA, Machine, house_of


async def test_a_model_is_deployed_looked_at_restarted_and_deleted_over_nats(tmp_path):
    node = Machine("a", [H100])
    async with house_of(tmp_path, node) as house, house.orchestrator():
        assert (await house.deploy()).state == "PLANNED"
        assert (await house.until_ready()).urls == ("http://a:8000",)
        assert [each.instance_name for each in await house.all()] == ["one"]
        logs = await house.ask(logs={"instance_name": "one"})
        assert logs.logs is not None
        assert logs.logs.text == "log of one"
        composed = await house.ask(compose={"instance_name": "one"})
        assert composed.compose is not None
        assert composed.compose.services["one"]

        await house.ask(restart={"instance_name": "one"})
        again = await house.until(lambda told: told.generation == 2 and told.state == "READY")
        assert again.created_at == (await house.deploy()).created_at

        await house.ask(delete={"instance_name": "one", "drain_seconds": 7})
        await house.until_gone()
        assert (node.running(), node.held, node.stopped[-1].drain_seconds) == ([], {}, 7)


async def test_one_that_is_deployed_again_under_its_name_goes_on_counting(tmp_path):
    node = Machine("a", [H100])
    async with house_of(tmp_path, node) as house, house.orchestrator():
        for generation in (1, 2):
            await house.deploy()
            ready = await house.until_ready()
            assert (ready.generation, ready.replicas[0].failures) == (generation, 0)
            await house.ask(delete={"instance_name": "one"})
            await house.until_gone()


async def test_a_plan_is_asked_as_ever(tmp_path):
    async with house_of(tmp_path, Machine("a", [H100])) as house, house.orchestrator():
        planned = await house.ask(model_name=LLAMA, max_model_len=4096)
        assert (planned.fits, planned.instance) == (True, None)
        told = await house.ask(strategies={})
        assert told.strategies is not None
        assert told.strategies.strategies


async def test_what_is_wrong_is_told_over_nats_too(tmp_path):
    async with house_of(tmp_path, Machine("a", [H100])) as house, house.orchestrator():
        with pytest.raises(NotFound, match="nobody"):
            await house.ask(instance={"instance_name": "nobody"})
        with pytest.raises(NotFound):
            await house.deploy(model_name="no/such-model")
        with pytest.raises(Conflict, match="1 of 5 replicas"):
            await house.deploy(replicas=5)
        assert await house.all() == ()


def test_one_question_is_asked_at_a_time():
    with pytest.raises(ValueError, match="one question at a time"):
        VllmRequest.model_validate({"model_name": LLAMA, "instances": {}})
    with pytest.raises(ValueError, match="model_name or model_config"):
        VllmRequest.model_validate({})


async def test_an_orchestrator_that_stands_by_passes_questions_on(tmp_path):
    async with house_of(tmp_path, Machine("a", [H100])) as house, house.orchestrator("first"):
        await house.deploy()
        await house.until_ready()
        async with house.orchestrator("second"):
            told = [len(await house.all()) for _ in range(40)]  # they share the questions
            assert told == [1] * 40
