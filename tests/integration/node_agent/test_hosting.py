"""Engines that others ask for, as real processes: begun once, found again, ended whole."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from libs.common.clock import SystemClock
from libs.common.contracts.engine_hosting import (
    EngineProgram,
    HostedEngine,
    LookAtEngines,
    ReadEngineLog,
    StartEngine,
    StopEngine,
)
from libs.common.contracts.node_registry import EngineState
from libs.common.errors import Conflict, Forbidden, Malformed
from services.node_agent.engine_http import engine_client
from services.node_agent.hosted import EngineContainers, Hosted
from services.node_agent.hosted_command import check_claim, model_of
from services.node_agent.hosted_door import EngineAddress
from services.node_agent.hosted_folder import LOG_BYTES, DiskHostedFolders, HostedFolder
from services.node_agent.hosted_process import FIRST_HEALTH_SECONDS, HostedProcess
from services.node_agent.hosting import Hosting
from services.node_agent.process_posix import PosixLauncher, rest_of_session
from tests.fake_engine import begun, fake_vllm
from tests.integration.node_agent.conftest import runs, until

LOOPBACK = EngineAddress()


class Host:
    """What an agent makes of hosting, without the rest of the agent."""

    def __init__(
        self,
        folder: Path,
        program: Path | None = None,
        address: EngineAddress = LOOPBACK,
        containers: EngineContainers | None = None,
    ) -> None:
        self.launcher, self.client = PosixLauncher(), engine_client(address.headers)
        self.shown: list[Hosted] = []
        self.committed: list[tuple[str, int | str]] = []
        self.refusal: Conflict | None = None
        allowed = {"vllm": str(program)} if program else {}

        async def commit(asked: StartEngine, pid: int, container_id: str | None) -> None:
            if self.refusal is not None:
                raise self.refusal
            self.committed.append((asked.instance, container_id or pid))

        async def test_model() -> str:
            raise AssertionError("no test model is wanted here")

        def make(asked: StartEngine, files: object) -> HostedProcess:
            return HostedProcess(
                asked,
                files=files,  # type: ignore[arg-type]
                launcher=self.launcher,
                client=self.client,
                clock=SystemClock(),
                allowed=allowed,
                address=address,
                containers=containers,
                commit=commit,
                test_model=test_model,
                changed=lambda: None,
            )

        self.hosting = Hosting(
            DiskHostedFolders(folder),
            make,
            node_id="node-1",
            boot_id="boot-1",
            shown=self.shown.append,
            hidden=self.shown.remove,
        )
        self.task: asyncio.Future[None] = asyncio.ensure_future(self.hosting.run())

    async def one(self) -> HostedEngine:
        return (await self.hosting.look(LookAtEngines())).engines[-1]

    async def until_state(self, state: EngineState) -> HostedEngine:
        async with asyncio.timeout(20):
            while (found := await self.one()).state is not state:
                await asyncio.sleep(0.02)
        return found

    async def log(self) -> str:
        return (await self.hosting.read_log(ReadEngineLog(instance="tiny", generation=1, characters=2000))).text

    async def until_ended(self) -> HostedEngine:
        async with asyncio.timeout(20):
            while (found := await self.one()).ended_at is None:
                await asyncio.sleep(0.02)
        return found

    async def forget(self) -> None:
        """What a `kill -9` of the agent does: nobody looks after the engines any more."""
        self.task.cancel()
        for watching in self.hosting._watched.values():  # a kill asks nobody
            watching.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.aclose()
        self.launcher.close()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.hosting.close()
        await self.client.aclose()
        self.launcher.close()


@asynccontextmanager
async def host(folder: Path, *starts: str) -> AsyncIterator[Host]:
    made = Host(folder / "engines", fake_vllm(folder / "vllm", *starts))
    try:
        yield made
    finally:
        await made.close()


def start_of(generation: int = 1, **changes: object) -> StartEngine:
    return StartEngine.model_validate(
        {
            "instance": "tiny",
            "generation": generation,
            "program": "vllm",
            "model_name": "m",
            "arguments": ("m", "--max-model-len", "64"),
            "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        }
        | changes
    )


async def test_an_engine_that_is_asked_for_comes_up_and_answers(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)

        assert httpx.get(f"{ready.url}/v1/models", trust_env=False).json()["data"][0]["id"] == "m"
        assert made.committed == [("tiny", ready.pid)]
        assert begun(tmp_path / "vllm")[0]["environment"] == {"VLLM_CPU_KVCACHE_SPACE": "1"}
        assert made.shown[0].work_types() == ("inference", "chat")


async def test_an_engine_that_others_reach_is_told_by_their_address_and_wants_its_key(tmp_path):
    program = fake_vllm(tmp_path / "vllm")
    made = Host(tmp_path / "engines", program, EngineAddress(host="0.0.0.0", told="127.0.0.9", api_key="secret"))
    try:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)

        assert (ready.url or "").startswith("http://127.0.0.9:")
        near = made.shown[0].now().url
        assert near == (ready.url or "").replace("127.0.0.9", "127.0.0.1")
        assert httpx.get(f"{ready.url}/v1/models", trust_env=False).status_code == httpx.codes.UNAUTHORIZED
        assert (await made.client.get(f"{near}/v1/models")).status_code == httpx.codes.OK
        assert "secret" not in " ".join(begun(tmp_path / "vllm")[0]["arguments"])
    finally:
        await made.close()


async def test_an_engine_listens_where_its_node_says_and_nowhere_else(tmp_path):
    made = Host(tmp_path / "engines", fake_vllm(tmp_path / "vllm"), EngineAddress(host="127.0.0.7", told="127.0.0.7"))
    try:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)

        assert (ready.url or "").startswith("http://127.0.0.7:")
        with pytest.raises(httpx.ConnectError):
            httpx.get((ready.url or "").replace("127.0.0.7", "127.0.0.1"), trust_env=False)
    finally:
        await made.close()


async def test_an_engine_that_is_found_again_is_reached_where_it_listens_whatever_is_set_since(tmp_path):
    async with host(tmp_path) as first:
        await first.hosting.start(start_of())
        ready = await first.until_state(EngineState.READY)
        await first.forget()
        second = Host(tmp_path / "engines", tmp_path / "vllm" / "vllm", EngineAddress(host="127.0.0.7"))
        try:
            assert (await second.until_state(EngineState.READY)).url == ready.url
        finally:
            await second.close()


async def request_in_hand(client: httpx.AsyncClient, url: str) -> "asyncio.Task[httpx.Response]":
    asked = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json={"messages": []}))
    async with asyncio.timeout(10):
        while " 1.0" not in (await client.get(f"{url}/metrics")).text:
            await asyncio.sleep(0.02)
    return asked


async def test_an_engine_ends_what_it_has_in_hand_before_it_ends_and_gets_no_more(tmp_path):
    async with host(tmp_path, "ponder=1.5") as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            asked = await request_in_hand(client, f"{ready.url}")
            for _ in range(3):
                await made.hosting.stop(StopEngine(instance="tiny", generation=1, drain_seconds=60))
            ending = await made.one()
            assert (ending.state, ending.ended_at) == (EngineState.STOPPED, None)
            assert made.shown[0].now().url is None
            assert (await asked).is_success
        assert (await made.until_ended()).exit_code == 0


async def test_who_is_in_a_hurry_waits_no_longer_for_requests_in_hand(tmp_path):
    async with host(tmp_path, "ponder=60") as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            asked = await request_in_hand(client, f"{ready.url}")
            await made.hosting.stop(StopEngine(instance="tiny", generation=1, drain_seconds=60))
            await made.hosting.stop(StopEngine(instance="tiny", generation=1))
            await made.until_ended()
            with pytest.raises(httpx.HTTPError):
                await asked


async def test_the_same_request_again_starts_nothing_more(tmp_path):
    async with host(tmp_path) as made:
        first = await made.hosting.start(start_of())
        again = await asyncio.gather(*(made.hosting.start(start_of()) for _ in range(5)))
        await made.until_state(EngineState.READY)

        assert {each.pid for each in again} == {first.pid}
        assert len(begun(tmp_path / "vllm")) == 1


async def test_an_agent_that_was_killed_finds_its_engine_again_and_starts_none_beside_it(tmp_path):
    async with host(tmp_path) as first:
        await first.hosting.start(start_of())
        ready = await first.until_state(EngineState.READY)
        await first.forget()
        second = Host(tmp_path / "engines", tmp_path / "vllm" / "vllm")
        try:
            await second.hosting.start(start_of())
            again = await second.until_state(EngineState.READY)

            assert (again.pid, again.url) == (ready.pid, ready.url)
            assert len(begun(tmp_path / "vllm")) == 1
        finally:
            await second.close()
        assert ready.pid is not None
        assert not runs(ready.pid)


async def test_an_engine_that_ended_unseen_is_told_as_failed_and_not_started_again(tmp_path):
    async with host(tmp_path) as first:
        await first.hosting.start(start_of())
        ready = await first.until_state(EngineState.READY)
        await first.forget()
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)
        await until(lambda: not runs(ready.pid or 0))
        second = Host(tmp_path / "engines", tmp_path / "vllm" / "vllm")
        try:
            assert (await second.hosting.start(start_of())).state is EngineState.FAILED
            assert len(begun(tmp_path / "vllm")) == 1
        finally:
            await second.close()


async def test_what_an_engine_leaves_is_ended_by_the_next_agent(tmp_path):
    """vLLM's scheduler holds no lock of ours, and holds the memory."""
    async with host(tmp_path) as first:
        await first.hosting.start(start_of())
        ready = await first.until_state(EngineState.READY)
        core = begun(tmp_path / "vllm")[0]["core"]
        await first.forget()
        os.kill(ready.pid or 0, signal.SIGKILL)
        await until(lambda: not runs(ready.pid or 0))
        assert runs(core)
        second = Host(tmp_path / "engines", tmp_path / "vllm" / "vllm")
        try:
            assert (await second.one()).state is EngineState.FAILED
            assert not runs(core)
        finally:
            await second.close()


async def test_an_engine_has_ended_when_all_of_its_processes_have(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        os.kill(ready.pid or 0, signal.SIGKILL)
        await made.until_ended()

        assert not runs(begun(tmp_path / "vllm")[0]["core"])


async def test_the_memory_of_all_its_processes_is_told(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        of_each = [psutil.Process(pid).memory_info().rss for pid in (ready.pid, begun(tmp_path / "vllm")[0]["core"])]

        assert made.shown[0].view().memory_mb == pytest.approx(sum(of_each) / 2**20, abs=2)
        assert min(of_each) > 5 * 2**20


def test_a_number_that_was_given_away_since_is_nobody_of_ours():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        started = psutil.Process(child.pid).create_time()
        assert [process.pid for process in rest_of_session(child.pid, started)] == [child.pid]
        assert rest_of_session(child.pid, started - 60) == []
        assert rest_of_session(child.pid, started + 60) == []
        assert rest_of_session(child.pid, psutil.boot_time() - 60) == []
    finally:
        child.kill()
        child.wait()


async def test_a_refused_reservation_lets_nothing_begin(tmp_path):
    async with host(tmp_path) as made:
        made.refusal = Conflict("it has expired")
        with pytest.raises(Conflict):
            await made.hosting.start(start_of())

        assert begun(tmp_path / "vllm") == []
        assert (await made.hosting.look(LookAtEngines())).engines == ()


@pytest.mark.parametrize(
    ("how", "words", "status"), [("oom_at_load", "out of memory", 1), ("bad_flag", "--no-such", 2)]
)
async def test_an_engine_that_fails_tells_its_exit_code_and_last_words(tmp_path, how, words, status):
    async with host(tmp_path, how) as made:
        await made.hosting.start(start_of())
        failed = await made.until_state(EngineState.FAILED)

        assert failed.exit_code == status
        assert words in failed.last_words
        log = await made.hosting.read_log(ReadEngineLog(instance="tiny", generation=1, characters=200))
        assert words in log.text
        assert len(log.text) <= 200
        assert made.shown == []


@pytest.mark.parametrize("how", ["hang", "wrong_port"])
async def test_an_engine_that_never_serves_is_starting_until_it_is_ended(tmp_path, how):
    async with host(tmp_path, how) as made:
        await made.hosting.start(start_of())
        async with asyncio.timeout(20):
            while not (started := begun(tmp_path / "vllm")):
                await asyncio.sleep(0.02)
            while how == "wrong_port" and "startup complete" not in await made.log():
                await asyncio.sleep(0.02)
        seen = {(await made.one()).state for _ in range(5) if await asyncio.sleep(FIRST_HEALTH_SECONDS, True)}
        await made.hosting.stop(StopEngine(instance="tiny", generation=1, grace_seconds=5))
        await made.until_ended()

        assert seen == {EngineState.STARTING}
        assert not any(runs(started[0][name]) for name in ("pid", "core"))


async def test_an_engine_that_starts_slowly_is_starting_and_then_serves(tmp_path):
    async with host(tmp_path, "slow=1") as made:
        await made.hosting.start(start_of())

        assert (await made.one()).state is EngineState.STARTING
        assert (await made.until_state(EngineState.READY)).reason == ""


async def test_an_engine_that_dies_of_a_request_tells_of_what(tmp_path):
    async with host(tmp_path, "dies") as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        with pytest.raises(httpx.HTTPError):
            await made.client.post(f"{ready.url}/v1/chat/completions", json={"model": "m", "messages": []})
        failed = await made.until_state(EngineState.FAILED)

        assert failed.exit_code == 1
        assert "illegal memory access" in failed.last_words
        assert not runs(begun(tmp_path / "vllm")[0]["core"])


async def test_an_engine_that_is_killed_tells_by_which_signal(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)

        assert (await made.until_state(EngineState.FAILED)).exit_code == -signal.SIGKILL


async def test_an_engine_that_ignores_sigterm_is_ended_all_the_same(tmp_path):
    async with host(tmp_path, "deaf") as made:
        await made.hosting.start(start_of())
        ready = await made.until_state(EngineState.READY)
        await made.hosting.stop(StopEngine(instance="tiny", generation=1, grace_seconds=0.2))

        stopped = await made.until_ended()
        assert stopped.state is EngineState.STOPPED
        assert not runs(ready.pid or 0)


async def test_a_later_generation_takes_the_place_of_an_earlier_one_and_not_the_other_way(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(start_of(1))
        first = await made.until_state(EngineState.READY)
        await made.hosting.start(start_of(3))

        assert not runs(first.pid or 0)
        assert (await made.hosting.start(start_of(1))).state is EngineState.STOPPED
        with pytest.raises(Conflict):
            await made.hosting.start(start_of(2))


async def test_an_engine_that_was_stopped_before_it_was_started_never_begins(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.stop(StopEngine(instance="tiny", generation=1))
        with pytest.raises(Conflict):
            await made.hosting.start(start_of())
        assert begun(tmp_path / "vllm") == []


async def test_a_program_that_the_owner_did_not_allow_is_refused(tmp_path):
    async with host(tmp_path) as made:
        with pytest.raises(Forbidden, match=r"ENGINE_PROGRAMS allows: vllm"):
            await made.hosting.start(start_of(program=EngineProgram.LLAMA))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"environment": {"LD_PRELOAD": "/tmp/x.so"}}, Forbidden),
        ({"arguments": ("m", "--host", "0.0.0.0")}, Malformed),
        ({"arguments": ("m", "--port=80")}, Malformed),
    ],
)
async def test_what_is_the_nodes_to_choose_cannot_be_chosen_by_others(tmp_path, changes, error):
    async with host(tmp_path) as made:
        with pytest.raises(error):
            await made.hosting.start(start_of(**changes))
        assert begun(tmp_path / "vllm") == []


def test_a_long_log_is_cut_and_keeps_its_end(tmp_path):
    files = HostedFolder(tmp_path)
    files.log.write_bytes(b"x" * LOG_BYTES + b"the end")
    files.bound_log()
    with files.log.open("ab") as more:
        more.write(b" and more")

    assert files.log.stat().st_size < 100
    assert files.last_characters(12) == "end and more"
    assert len(files.last_characters(10_000)) == 10_000


def test_a_folder_with_a_torn_record_is_no_engine(tmp_path):
    (tmp_path / "begun.json").write_text(json.dumps({"port": 1}))
    assert HostedFolder(tmp_path).begun() is None


@pytest.mark.parametrize(
    ("arguments", "model"),
    [(("--model", "/m.gguf", "--slots", "2"), "/m.gguf"), (("--slots", "2"), None), (("--model",), None)],
)
def test_the_model_of_an_engine_is_the_file_that_it_is_given(arguments: tuple[str, ...], model: str | None):
    asked = StartEngine(
        instance="a", generation=1, program=EngineProgram.LLAMA, model_name="m", arguments=arguments, slots=2
    )

    assert model_of(asked) == model
    assert model_of(asked.model_copy(update={"program": EngineProgram.VLLM})) is None


def test_an_engine_that_takes_more_than_was_claimed_for_it_is_refused_by_both_figures():
    check_claim(500, 500)
    with pytest.raises(Malformed, match="ram_mb: 500 MiB are claimed, but the model with its context takes 501"):
        check_claim(500, 501)
