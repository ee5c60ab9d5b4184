"""Benchmark runs against the real engine."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from libs.common.clock import SystemClock
from libs.common.contracts.benchmark_runner import BenchmarkRequest, BenchmarkState
from libs.common.contracts.node_registry import Engine, EngineState, NodeWorkload
from libs.common.errors import Conflict, NotFound, Unavailable
from services.benchmark_runner.load_http import HttpLoad
from services.benchmark_runner.store_files import FileReports
from services.benchmark_runner.use_cases import BenchmarkRunner
from services.node_agent.hosted_door import EngineAddress
from tests.fake_engine import fake_vllm
from tests.integration.node_agent.conftest import EngineAtWork, engines, until
from tests.integration.node_agent.test_engine_llama import counters
from tests.integration.node_agent.test_hosting import Host, start_of


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineAtWork]:
    async with engines(tmp_path / "engine") as make:
        yield make()


@asynccontextmanager
async def runner_in(folder: Path, key: str = "") -> AsyncIterator[BenchmarkRunner]:
    clock, numbers = SystemClock(), itertools.count(1)
    reports = FileReports(folder)
    async with httpx.AsyncClient(trust_env=False) as client:
        runner = BenchmarkRunner(
            clock=clock,
            load=HttpLoad(client, clock, key),
            reports=reports,
            make_id=lambda: f"run-{next(numbers)}",
            queue_limit=2,
        )
        await runner.recall()
        working = asyncio.create_task(runner.work())
        try:
            yield runner
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            reports.close()


async def heard(runner: BenchmarkRunner, engine: EngineAtWork) -> None:
    await engine.ready()
    await runner.hear(workload_of(engine.engine.now()))


def workload_of(engine: Engine) -> NodeWorkload:
    return NodeWorkload(node_id="node-1", boot_id="b", at=datetime.now(UTC), slots=4, free_slots=4, engines=(engine,))


async def test_a_run_counts_what_the_engine_counts(engine: EngineAtWork, tmp_path: Path):
    url = await engine.ready()
    async with runner_in(tmp_path / "reports") as runner:
        await heard(runner, engine)
        before = await counters(url)
        view = await runner.start(BenchmarkRequest(requests=20, concurrency=4, prompt_tokens=40, max_tokens=10))
        after = await counters(url)

    result = view.result
    assert result is not None
    assert (view.state, result.requests_completed, result.requests_failed) == (BenchmarkState.COMPLETED, 20, 0)
    assert (view.node_id, view.model_name) == ("node-1", "tiny-random-llama")
    # Ten more are the warm-up's, which is not reported.
    assert result.completion_tokens == 200
    assert after["tokens_predicted_total"] - before["tokens_predicted_total"] == 210
    assert result.prompt_tokens_per_request is not None
    assert result.prompt_tokens_per_request.mean == pytest.approx(40, rel=0.3)
    first, whole = result.time_to_first_token_seconds, result.end_to_end_seconds
    assert first is not None
    assert whole is not None
    assert 0 < first.p50 < whole.p50 <= result.duration_seconds


async def test_a_server_may_be_named_by_its_address(engine: EngineAtWork, tmp_path: Path):
    url = await engine.ready()
    async with runner_in(tmp_path / "reports") as runner:
        view = await runner.start(BenchmarkRequest(base_url=f"{url}/v1", requests=2, concurrency=1, max_tokens=2))

    assert view.state == BenchmarkState.COMPLETED
    assert view.model_name == "tiny-random-llama"


async def test_an_engine_that_wants_a_key_is_told_it_and_nobody_else_is(tmp_path: Path):
    made = Host(tmp_path / "engines", fake_vllm(tmp_path / "vllm"), EngineAddress(told="localhost", api_key="s3cret"))
    try:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        async with runner_in(tmp_path / "reports", key="s3cret") as runner:
            asked = BenchmarkRequest(base_url=ready.url, requests=1, max_tokens=2)
            strange = await runner.start(asked)
            await runner.hear(workload_of(made.shown[0].now()))
            by_address = await runner.start(asked)
            by_model = await runner.start(BenchmarkRequest(model_name="m", requests=1, max_tokens=2))
    finally:
        await made.close()

    assert (strange.state, by_address.state, by_model.state) == ("failed", "completed", "completed")
    assert by_model.base_url == ready.url
    reports = [file.read_text(encoding="utf-8") for file in (tmp_path / "reports").glob("*.json")]
    assert len(reports) == 3
    assert "s3cret" not in "".join(reports)


async def test_a_run_says_that_an_engine_wants_a_key(tmp_path: Path):
    made = Host(tmp_path / "engines", fake_vllm(tmp_path / "vllm"), EngineAddress(api_key="s3cret"))
    try:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        async with runner_in(tmp_path / "reports") as runner:
            view = await runner.start(BenchmarkRequest(base_url=ready.url, model_name="m", requests=1))
    finally:
        await made.close()

    assert "wants a key that it was not told: see ENGINE_API_KEY" in str(view.problem)


async def test_reports_are_there_after_a_restart(engine: EngineAtWork, tmp_path: Path):
    url = await engine.ready()
    async with runner_in(tmp_path / "reports") as runner:
        view = await runner.start(BenchmarkRequest(base_url=url, requests=2, max_tokens=2))
    (tmp_path / "reports" / "broken.json").write_text("{", encoding="utf-8")

    async with runner_in(tmp_path / "reports") as later:
        assert await later.look(view.benchmark_id) == view
        assert [each.benchmark_id for each in (await later.list()).benchmarks] == [view.benchmark_id]


async def test_a_run_can_be_cancelled_while_it_runs_and_while_it_waits(engine: EngineAtWork, tmp_path: Path):
    url = await engine.ready()
    endless = BenchmarkRequest(base_url=url, requests=100_000, max_tokens=64, background=True)
    async with runner_in(tmp_path / "reports") as runner:
        first, second = await runner.start(endless), await runner.start(endless)
        await until(lambda: runner._runs[first.benchmark_id].view.requests_done > 3)
        waiting = await runner.cancel(second.benchmark_id)
        running = await runner.cancel(first.benchmark_id)
        with pytest.raises(Conflict):
            await runner.cancel(first.benchmark_id)
        after = await runner.start(BenchmarkRequest(base_url=url, requests=1, max_tokens=1))

    assert (waiting.state, running.state) == (BenchmarkState.CANCELLED, BenchmarkState.CANCELLED)
    assert running.requests_done > 3
    assert after.state == BenchmarkState.COMPLETED


async def test_too_many_waiting_runs_are_refused(engine: EngineAtWork, tmp_path: Path):
    url = await engine.ready()
    endless = BenchmarkRequest(base_url=url, requests=100_000, background=True)
    async with runner_in(tmp_path / "reports") as runner:
        first = await runner.start(endless)
        await until(lambda: runner._runs[first.benchmark_id].view.state == BenchmarkState.RUNNING)
        for _ in range(2):
            await runner.start(endless)
        with pytest.raises(Unavailable, match="2 benchmark runs wait already"):
            await runner.start(endless)


async def test_without_an_engine_a_run_is_refused_at_once(tmp_path: Path):
    async with runner_in(tmp_path / "reports") as runner:
        with pytest.raises(Unavailable, match="no ready engine for model nowhere"):
            await runner.start(BenchmarkRequest(model_name="nowhere", background=True))
        with pytest.raises(NotFound):
            await runner.look("run-99")


async def test_a_server_that_does_not_answer_fails_the_run(tmp_path: Path):
    async with runner_in(tmp_path / "reports") as runner:
        view = await runner.start(BenchmarkRequest(base_url="http://127.0.0.1:9", model_name="m", requests=1))

    assert view.state == BenchmarkState.FAILED
    assert "does not serve: ConnectError" in str(view.problem)


async def test_connections_that_the_server_ends_are_no_failures(engine: EngineAtWork, tmp_path: Path):
    """llama.cpp ends a kept connection after a hundred requests, without saying so."""
    url = await engine.ready()
    async with runner_in(tmp_path / "reports") as runner:
        view = await runner.start(BenchmarkRequest(base_url=url, requests=450, concurrency=2, max_tokens=1))

    assert view.result is not None
    assert view.result.errors == {}
