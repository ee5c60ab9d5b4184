"""An engine that is not ours to keep: here a real llama.cpp that the test runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.work_marshaling import WorkCompleted
from libs.common.errors import WrongSetting
from libs.common.kit.settings import load
from services.node_agent.settings import Settings
from tests.integration.node_agent.conftest import EngineMaker, runs, until
from tests.integration.node_agent.mesh import AgentAtWork, Marshaling, agent, job, marshaling

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "ignore_eos": True}


@asynccontextmanager
async def agent_on(url: str, folder: Path, **more: str) -> AsyncIterator[tuple[Marshaling, AgentAtWork]]:
    environment = {"ENGINE": "openai", "ENGINE_URL": url, "ENGINE_SLOTS": "2", "AGENT_FUNCTIONS": "", **more}
    async with marshaling() as other, agent(other.server, folder, environment) as at_work:
        yield other, at_work


async def test_inference_chat_and_embeddings_run_on_an_engine_of_somebody_else(engine: EngineMaker, tmp_path: Path):
    theirs = engine(embeddings=True)
    url = await theirs.ready()
    jobs = [
        job("inference", {"prompt": "hello", "max_tokens": 8, "ignore_eos": True}),
        job("chat", CHAT | {"stream": True}),
        job("embedding", {"input": "hello"}),
    ]
    async with agent_on(f"{url}/v1/", tmp_path / "agent", ENGINE_EMBEDDINGS="true") as (other, _):
        await until(lambda: other.workloads and other.workloads[-1].free_slots == 2)
        told = other.workloads[-1].engines[0]
        for each in jobs:
            await other.assign(each)
            await other.outcome_of(each)

    assert (told.kind, told.model_name, told.url) == ("openai", "tiny-random-llama", url)
    results: list[Any] = [outcome.result for outcome in other.outcomes if isinstance(outcome, WorkCompleted)]
    assert [result["usage"]["completion_tokens"] for result in results[:2]] == [8, 8]
    assert len(results[2]["embeddings"]) == 1
    pid = theirs.engine.view().pid
    assert pid is not None
    assert runs(pid)


async def test_an_engine_that_is_away_takes_no_work_until_it_is_back(engine: EngineMaker, tmp_path: Path):
    theirs = engine()
    url = await theirs.ready()
    async with agent_on(url, tmp_path / "agent") as (other, at_work):
        await until(lambda: other.workloads and other.workloads[-1].free_slots == 2)
        await theirs.stop()
        await until(lambda: other.workloads[-1].engines[0].state == EngineState.FAILED)
        refused = await other.assign(job("chat", CHAT))
        shown = (await at_work.get("/api/v1/engines")).json()["engines"][0]

    assert not refused[0].accepted
    assert "openai-1 is FAILED" in refused[0].reason
    assert "/v1/models does not answer as an engine does" in shown["problem"]


async def test_a_model_that_the_engine_does_not_have_is_said_with_those_it_has(engine: EngineMaker, tmp_path: Path):
    url = await engine().ready()
    async with agent_on(url, tmp_path / "agent", MODEL_NAME="another") as (other, _):
        await until(lambda: other.workloads and other.workloads[-1].engines[0].state == EngineState.FAILED)

    assert other.workloads[-1].engines[0].problem == (
        "the engine serves tiny-random-llama, not another as MODEL_NAME says"
    )


def test_an_engine_without_its_address_is_a_wrong_setting():
    with pytest.raises(WrongSetting, match="ENGINE is openai, but ENGINE_URL"):
        load(Settings, {"ENGINE": "openai"})
