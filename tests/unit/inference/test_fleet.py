"""Engines are where their nodes last said, for as long as those are heard."""

from datetime import UTC, datetime

from libs.common.contracts.node_registry import Engine, EngineState, NodeWorkload
from libs.inference.fleet import SILENT_SECONDS, Fleet


def workload(
    node_id: str, *models: str, draining: bool = False, state: EngineState = EngineState.READY
) -> NodeWorkload:
    engines = tuple(
        Engine(engine_id=f"e-{model}", kind="llama.cpp", model_name=model, state=state, device="cpu", url="http://x")
        for model in models
    )
    now = datetime(2030, 1, 1, tzinfo=UTC)
    return NodeWorkload(node_id=node_id, boot_id="b", at=now, slots=4, free_slots=4, engines=engines, draining=draining)


def test_engines_are_listed_by_model_and_node():
    fleet = Fleet()
    fleet.hear(workload("b", "m1", "m2"), 0.0)
    fleet.hear(workload("a", "m1"), 1.0)

    found = [(placed.engine.model_name, placed.node_id) for placed in fleet.engines(1.0)]

    assert found == [("m1", "a"), ("m1", "b"), ("m2", "b")]
    assert [placed.node_id for placed in fleet.engines(1.0, model_name="m2")] == ["b"]


def test_the_last_word_of_a_node_counts():
    fleet = Fleet()
    fleet.hear(workload("a", "m1"), 0.0)
    fleet.hear(workload("a", "m2"), 1.0)

    assert [placed.engine.model_name for placed in fleet.engines(1.0)] == ["m2"]


def test_a_node_that_fell_silent_is_not_counted_on():
    fleet = Fleet()
    fleet.hear(workload("a", "m1"), 0.0)

    assert fleet.engines(SILENT_SECONDS)
    assert not fleet.engines(SILENT_SECONDS + 0.001)


def test_an_engine_is_usable_only_when_ready_on_a_node_that_stays():
    fleet = Fleet()
    fleet.hear(workload("a", "m"), 0.0)
    fleet.hear(workload("b", "m", draining=True), 0.0)
    fleet.hear(workload("c", "m", state=EngineState.FAILED), 0.0)

    assert [placed.node_id for placed in fleet.engines(0.0) if placed.usable] == ["a"]
