"""Jobs of inference on the real engine, through the whole agent."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.work_marshaling import WorkCompleted, WorkFailed
from services.node_agent.engine_http import engine_client
from services.node_agent.observer_prometheus import PrometheusObserver
from services.node_agent.runner_openai import EngineRunner
from tests.integration.node_agent.conftest import EngineMaker, until
from tests.integration.node_agent.mesh import AgentAtWork, Marshaling, agent, job, marshaling
from tests.integration.node_agent.test_engine_llama import counters

ENGINE = {"ENGINE": "llama.cpp", "ENGINE_CONTEXT": "512", "ENGINE_SLOTS": "2", "AGENT_FUNCTIONS": ""}


@asynccontextmanager
async def agent_with_engine(folder: Path, **more: str) -> AsyncIterator[tuple[Marshaling, AgentAtWork]]:
    async with marshaling() as other, agent(other.server, folder, ENGINE | more) as at_work:
        await until(lambda: other.workloads and other.workloads[-1].free_slots > 0)
        yield other, at_work


async def test_tokens_told_in_results_equal_the_engines_own_count(tmp_path: Path):
    async with agent_with_engine(tmp_path) as (other, _):
        url = other.workloads[-1].engines[0].url or ""
        before = await counters(url)
        jobs = [job("inference", {"prompt": f"number {n}", "max_tokens": 5 + n, "ignore_eos": True}) for n in range(6)]
        for pair in (jobs[:2], jobs[2:4], jobs[4:]):
            assert all(answer.accepted for answer in await other.assign(*pair))
            outcomes = [await other.outcome_of(each) for each in pair]
            assert all(isinstance(outcome, WorkCompleted) for outcome in outcomes)
        after = await counters(url)

    results: list[Any] = [outcome.result for outcome in other.outcomes if isinstance(outcome, WorkCompleted)]
    assert sum(result["usage"]["completion_tokens"] for result in results) == sum(5 + n for n in range(6))
    written = after["tokens_predicted_total"] - before["tokens_predicted_total"]
    assert sum(result["usage"]["completion_tokens"] for result in results) == written
    assert all(result["test_model"] and result["engine_id"] == "llama-1" for result in results)
    assert all(result["finish_reason"] == "length" for result in results)


async def test_the_same_seed_gives_the_same_text_streamed_or_not(tmp_path: Path):
    payload = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 7, "temperature": 0}
    whole, streamed = job("chat", payload), job("chat", payload | {"stream": True})
    async with agent_with_engine(tmp_path) as (other, _):
        outcomes = []
        for each in (whole, streamed):
            await other.assign(each)
            outcomes.append(await other.outcome_of(each))

    first, second = (outcome.result for outcome in outcomes if isinstance(outcome, WorkCompleted))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["text"]
    assert first["usage"] == second["usage"]
    # A byte that is half a character is told at once when streamed, and with its neighbour otherwise.
    assert str(first["text"]).replace("\ufffd", "") == str(second["text"]).replace("\ufffd", "")


async def test_partial_output_of_a_streamed_job_comes_with_its_progress(tmp_path: Path):
    payload = {"prompt": "tell", "max_tokens": 7000, "ignore_eos": True}
    streamed, whole = job("inference", payload | {"stream": True}), job("inference", payload)
    async with agent_with_engine(tmp_path, ENGINE_CONTEXT="8192") as (other, _):
        await other.assign(streamed, whole)
        await until(lambda: any(each.text for message in other.progress for each in message.attempts))
        await other.stop(streamed.attempt_token or "", whole.attempt_token or "")

    told = {each.attempt_token for message in other.progress for each in message.attempts if each.text}
    assert told == {streamed.attempt_token}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({}, "bad_payload"),
        ({"prompt": "x", "max_tokens": -1}, "bad_payload"),
        ({"prompt": "x", "top_k": "many"}, "bad_payload"),
        ({"prompt": "word " * 5000}, "context_exceeded"),
    ],
)
async def test_a_payload_the_engine_cannot_take_fails_for_good(tmp_path: Path, payload: dict[str, Any], code: str):
    assignment = job("inference", payload)
    async with agent_with_engine(tmp_path) as (other, _):
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == (code, False)


async def test_another_model_than_the_engines_is_refused(tmp_path: Path):
    async with agent_with_engine(tmp_path) as (other, _):
        answers = await other.assign(job("inference", {"prompt": "x"}, model_name="some-other-model"))

    assert not answers[0].accepted
    assert "serves tiny-random-llama, not some-other-model" in answers[0].reason


async def test_embeddings_are_offered_only_by_an_engine_that_makes_them(tmp_path: Path):
    assignment = job("embedding", {"input": ["one", "two words"]})
    async with agent_with_engine(tmp_path / "without") as (other, _):
        assert other.workloads[-1].work_types == ("inference", "chat")
        assert not (await other.assign(assignment))[0].accepted
    async with agent_with_engine(tmp_path / "with", ENGINE_EMBEDDINGS="true") as (other, _):
        assert other.workloads[-1].work_types == ("inference", "chat", "embedding")
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkCompleted)
    assert isinstance(outcome.result, dict)
    vectors = outcome.result["embeddings"]
    assert isinstance(vectors, list)
    assert [len(vector) for vector in vectors if isinstance(vector, list)] == [128, 128]


async def test_a_job_whose_engine_is_killed_may_be_tried_again_and_the_engine_comes_back(tmp_path: Path):
    assignment = job("inference", {"prompt": "long", "max_tokens": 7000, "ignore_eos": True})
    async with agent_with_engine(tmp_path, ENGINE_CONTEXT="8192") as (other, at_work):
        await other.assign(assignment)
        await until(lambda: other.progress)
        engine = (await at_work.get("/api/v1/engines")).json()["engines"][0]
        os.kill(engine["pid"], signal.SIGKILL)
        outcome = await other.outcome_of(assignment)
        await until(lambda: other.workloads[-1].engines[0].state == EngineState.FAILED)
        away = await other.assign(job("inference", {"prompt": "x"}))
        await until(lambda: other.workloads[-1].engines[0].state == EngineState.READY)
        back = await other.assign(again := job("inference", {"prompt": "x", "max_tokens": 2}))
        await other.outcome_of(again)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("engine_unavailable", True)
    assert not away[0].accepted
    assert "llama-1 is FAILED" in away[0].reason
    assert back[0].accepted


async def test_a_job_that_is_stopped_leaves_the_engines_slot(tmp_path: Path):
    assignment = job("inference", {"prompt": "long", "max_tokens": 7000, "ignore_eos": True})
    async with agent_with_engine(tmp_path, ENGINE_CONTEXT="8192") as (other, _):
        url = other.workloads[-1].engines[0].url or ""
        await other.assign(assignment)
        while (await counters(url))["requests_processing"] == 0:  # asked of another process
            await asyncio.sleep(0.01)
        await other.stop(assignment.attempt_token or "")
        async with asyncio.timeout(60):
            while (left := await counters(url))["requests_processing"] > 0:
                await asyncio.sleep(0.01)

    assert other.outcomes == []
    assert left["tokens_predicted_total"] < 7000


async def test_no_connection_to_the_engine_is_kept(engine: EngineMaker):
    """llama.cpp ends kept ones after a hundred requests, at times just when the next one is sent: a job would fail."""
    at_work = engine()
    port = int((await at_work.ready()).rsplit(":", 1)[1])
    async with engine_client() as client:
        runner = EngineRunner(at_work.engine, client, PrometheusObserver(CollectorRegistry()))
        for stream in (False, True):
            await runner.run(job("inference", {"prompt": "x", "max_tokens": 1, "stream": stream}), lambda _: None)

        ours = [each for each in psutil.Process().net_connections() if each.raddr and each.raddr.port == port]
        assert [each for each in ours if each.status == psutil.CONN_ESTABLISHED] == []
