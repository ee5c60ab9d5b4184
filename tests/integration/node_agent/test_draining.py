"""A node that is to finish what it runs and to take nothing more."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.common.contracts.node_registry import QUERY, STATUS, NodeQuery, NodesFound, NodeState, NodeStatus
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import WorkCompleted
from services.node_agent import use_cases
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.functions import gate, reached
from tests.integration.node_agent.mesh import NODE, agent, bare_agent, function_job, marshaling

SAMPLE = Path(__file__).parents[2] / "contract" / "samples" / "compute.nodes.query.v1.reply.json"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


async def test_a_drained_node_finishes_what_runs_and_takes_nothing_more(tmp_path: Path):
    running = function_job("wait_at", "drained")
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.assign(running)
        gate("drained")
        await until(lambda: reached["drained"].is_set())
        drained = (await at_work.ask("POST", "/api/v1/drain", json={"reason": "new fans"})).json()
        await until(lambda: other.workloads[-1].draining)
        answers = await other.assign(function_job("echo"))
        gate("drained").set()
        outcome = await other.outcome_of(running)
        metrics = at_work.metrics()

    assert drained == {
        "draining": True,
        "reason": "this node is draining by its owner: new fans",
        "by": ["owner"],
        "running": 1,
    }
    assert other.workloads[-1].free_slots == 0
    assert (answers[0].accepted, answers[0].reason) == (False, "this node is draining by its owner: new fans")
    assert isinstance(outcome, WorkCompleted)
    assert "mesh_agent_draining 1.0" in metrics


async def test_a_drained_node_stays_drained_when_its_agent_starts_anew_until_it_may_work_again(tmp_path: Path):
    async with marshaling() as other:
        async with agent(other.server, tmp_path) as at_work:
            await at_work.ask("POST", "/api/v1/drain")
        async with agent(other.server, tmp_path) as at_work:
            still = (await at_work.get("/api/v1/drain")).json()
            refused = await other.assign(function_job("echo"))
            free = (await at_work.ask("POST", "/api/v1/undrain")).json()
            taken = await other.assign(function_job("echo"))
        async with agent(other.server, tmp_path) as at_work:
            afterwards = (await at_work.get("/api/v1/drain")).json()

    assert (still["draining"], still["by"]) == (True, ["owner"])
    assert (refused[0].accepted, taken[0].accepted) == (False, True)
    assert (free["draining"], afterwards["draining"]) == (False, False)


def status(draining: bool, node_id: str = NODE) -> NodeStatus:
    return NodeStatus(
        node_id=node_id, state=NodeState.ONLINE, previous=None, reason="maintenance", at=NOW, draining=draining
    )


async def test_a_node_that_the_registry_drains_takes_nothing_more_until_the_registry_says_so(tmp_path: Path):
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.bus.publish(STATUS, status(True))
        await until(lambda: other.workloads and other.workloads[-1].draining)
        refused = await other.assign(function_job("echo"))
        by_owner = (await at_work.ask("POST", "/api/v1/undrain")).json()
        await other.bus.publish(STATUS, status(False))
        await until(lambda: not other.workloads[-1].draining)
        taken = await other.assign(function_job("echo"))

    assert refused[0].reason == "this node is draining by the registry: maintenance"
    assert (by_owner["draining"], by_owner["by"]) == (True, ["registry"])
    assert taken[0].accepted


async def test_what_the_registry_says_of_other_nodes_does_not_matter(tmp_path: Path):
    async with bare_agent(tmp_path, slots=1) as bare:
        await bare.node_status(status(True, "another-node"))
        before = bare.draining_now()
        await bare.node_status(status(True))
        await bare.node_status(status(False, "another-node"))

        assert not before.draining
        assert bare.draining_now().draining


async def test_an_agent_that_starts_asks_the_registry_whether_its_node_is_draining(tmp_path: Path):
    async def found(query: NodeQuery) -> NodesFound:
        assert query.node_ids == (NODE,)
        node = NodesFound.model_validate_json(SAMPLE.read_text()).nodes[0]
        drained = node.model_copy(update={"node_id": NODE, "draining": True, "draining_reason": "moved"})
        return NodesFound(nodes=(drained,), total=1)

    async with marshaling() as other:
        await other.bus.serve(QUERY, found)
        async with agent(other.server, tmp_path):
            await until(lambda: other.workloads and other.workloads[-1].draining)
            refused = await other.assign(function_job("echo"))

    assert refused[0].reason == "this node is draining by the registry: moved"


async def test_nothing_is_taken_while_too_many_outcomes_wait_to_be_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(use_cases, "MOST_UNDELIVERED", 1)
    small = replace(WORK_OUT, max_bytes=500)
    async with marshaling(stream=small) as other, agent(other.server, tmp_path) as at_work:
        await other.assign(function_job("echo", "x" * 800))
        await until(lambda: "mesh_agent_outcome_delivery_failures_total 1.0" in at_work.metrics())
        refused = await other.assign(function_job("echo"))
        await until(lambda: other.workloads[-1].free_slots == 0)

    assert refused[0].reason == "1 outcomes wait here to be delivered"
