"""The engine for real: llama.cpp as a child process with the test model."""

import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from libs.common.contracts.node_registry import EngineState
from services.node_agent import engine_llama
from services.node_agent.process_posix import PosixLauncher
from tests.integration.node_agent.conftest import EngineMaker, runs, until


async def asked(method: str, url: str, **more: object) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, url, **more)  # type: ignore[arg-type]


async def counters(url: str) -> dict[str, float]:
    lines = (await asked("GET", f"{url}/metrics")).text.splitlines()
    pairs = [re.split(r"\s+", line) for line in lines if line and not line.startswith("#")]
    return {name.removeprefix("llamacpp:"): float(value) for name, value in pairs}


async def test_the_engine_comes_up_and_says_what_it_is(engine: EngineMaker):
    at_work = engine()
    url = await at_work.ready()

    now = at_work.engine.view()
    assert now.test_model
    assert now.model_name == "tiny-random-llama"
    assert now.device == "cpu"
    assert now.device_reason
    assert now.memory_mb is not None
    assert now.memory_mb > 5
    assert url.startswith("http://127.0.0.1:")
    assert (await asked("GET", f"{url}/v1/models")).json()["data"][0]["id"] == "tiny-random-llama"


async def test_tokens_in_usage_equal_the_difference_in_the_engines_counters(engine: EngineMaker):
    url = await engine().ready()
    before = await counters(url)

    usages = [
        (await asked("POST", f"{url}/v1/completions", json={"prompt": f"{n} and the work", "max_tokens": 7})).json()[
            "usage"
        ]
        for n in range(5)
    ]

    after = await counters(url)
    cached = after["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"]
    read = after["prompt_tokens_total"] - before["prompt_tokens_total"] + cached
    assert sum(usage["prompt_tokens"] for usage in usages) == read
    written = after["tokens_predicted_total"] - before["tokens_predicted_total"]
    assert sum(usage["completion_tokens"] for usage in usages) == written == 35


async def test_an_engine_that_was_killed_is_started_again(engine: EngineMaker):
    at_work = engine()
    await at_work.ready()
    first = at_work.engine.view().pid
    assert first is not None

    os.kill(first, signal.SIGKILL)
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)
    assert "SIGKILL" in str(at_work.engine.now().problem)
    await at_work.ready()

    assert at_work.engine.view().pid != first
    assert at_work.engine.view().restarts == 1


async def test_an_engine_left_running_is_found_again_and_none_is_started_beside_it(engine: EngineMaker):
    first = engine()
    url = await first.ready()
    await first.forget()

    second = engine()

    assert await second.ready() == url
    assert second.engine.view().adopted
    assert second.engine.view().pid == first.engine.view().pid


async def test_an_engine_that_was_found_again_is_watched_and_ended_like_our_own(engine: EngineMaker):
    first = engine()
    await first.ready()
    await first.forget()
    second = engine()
    await second.ready()
    pid = second.engine.view().pid
    assert pid is not None

    await second.stop()

    assert not runs(pid)


async def test_an_engine_left_running_with_other_settings_is_replaced(engine: EngineMaker):
    first = engine()
    await first.ready()
    await first.forget()

    second = engine(slots=2)
    await second.ready()

    assert second.engine.view().pid != first.engine.view().pid
    assert not second.engine.view().adopted
    assert len((await asked("GET", f"{second.engine.now().url}/slots")).json()) == 2


async def test_a_frozen_engine_left_behind_is_ended_and_replaced(engine: EngineMaker):
    first = engine()
    await first.ready()
    pid = first.engine.view().pid
    assert pid is not None
    await first.forget()
    os.kill(pid, signal.SIGSTOP)

    second = engine()
    await second.ready()

    assert second.engine.view().pid != pid


async def test_stopping_leaves_no_process_and_no_lock_behind(engine: EngineMaker, tmp_path: Path):
    at_work = engine()
    await at_work.ready()
    pid = at_work.engine.view().pid
    assert pid is not None

    await at_work.stop()

    assert not runs(pid)
    hold = PosixLauncher().hold(tmp_path / "engine.lock")
    assert hold is not None
    hold.release()


async def test_an_engine_that_cannot_load_its_model_says_so(engine: EngineMaker, tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing of use")

    at_work = engine(model_path=str(broken))
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)

    assert "before it listened" in str(at_work.engine.now().problem)
    assert "failed" in str(at_work.engine.now().problem).lower()


async def test_the_page_of_a_browser_may_not_read_the_engines_answers(engine: EngineMaker):
    url = await engine().ready()

    answer = await asked("GET", f"{url}/v1/models", headers={"Origin": "https://example.com"})

    assert answer.headers.get("access-control-allow-origin") in (None, "http://127.0.0.1")


async def test_an_engine_that_freezes_while_it_serves_is_ended_and_started_again(
    engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
):
    for name, seconds in (("HEALTH_SECONDS", 0.2), ("CONSPICUOUS_SECONDS", 0.5), ("PATIENCE_SECONDS", 1.0)):
        monkeypatch.setattr(engine_llama, name, seconds)
    at_work = engine()
    await at_work.ready()
    pid = at_work.engine.view().pid
    assert pid is not None

    os.kill(pid, signal.SIGSTOP)
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)
    assert "does not answer" in str(at_work.engine.now().problem)
    await until(lambda: not runs(pid))
    await at_work.ready()

    assert at_work.engine.view().restarts == 1


async def test_an_engine_that_froze_and_goes_on_is_kept(engine: EngineMaker, monkeypatch: pytest.MonkeyPatch):
    for name, seconds in (("HEALTH_SECONDS", 0.2), ("CONSPICUOUS_SECONDS", 0.5), ("PATIENCE_SECONDS", 60.0)):
        monkeypatch.setattr(engine_llama, name, seconds)
    at_work = engine()
    await at_work.ready()
    pid = at_work.engine.view().pid
    assert pid is not None

    os.kill(pid, signal.SIGSTOP)
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)
    os.kill(pid, signal.SIGCONT)
    await at_work.ready()

    assert (at_work.engine.view().pid, at_work.engine.view().restarts) == (pid, 0)


async def test_an_engine_whose_folder_was_removed_ends_by_itself(engine: EngineMaker, tmp_path: Path):
    at_work = engine()
    await at_work.ready()
    pid = at_work.engine.view().pid
    assert pid is not None
    await at_work.forget()

    for path in tmp_path.iterdir():
        path.unlink()

    await until(lambda: not runs(pid), seconds=10)
