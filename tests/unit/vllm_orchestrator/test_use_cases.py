"""What serves where."""

from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import EngineState
from services.vllm_orchestrator.use_cases import VllmOrchestrator
from tests.unit.inference.test_fleet import workload


async def test_models_are_told_with_where_and_how_much():
    orchestrator = VllmOrchestrator(ManualClock())
    await orchestrator.hear(workload("a", "m1"))
    await orchestrator.hear(workload("b", "m1", "m2", state=EngineState.STARTING))

    models = {model.model_name: model for model in (await orchestrator.models()).models}

    assert (models["m1"].ready, models["m1"].node_ids) == (1, ("a", "b"))
    assert (models["m2"].ready, models["m2"].node_ids) == (0, ("b",))


async def test_engines_of_one_model_are_told():
    orchestrator = VllmOrchestrator(ManualClock())
    await orchestrator.hear(workload("a", "m1", "m2"))

    found = await orchestrator.engines("m2")

    assert [placed.engine.engine_id for placed in found.engines] == ["e-m2"]


async def test_a_silent_nodes_engines_are_gone():
    clock = ManualClock()
    orchestrator = VllmOrchestrator(clock)
    await orchestrator.hear(workload("a", "m1"))
    clock.advance(21)

    assert (await orchestrator.engines(None)).engines == ()
    assert orchestrator.ready() == 0
