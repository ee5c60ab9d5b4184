"""llama.cpp kept running: found again or started, watched, started anew when it dies, ended with us."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import httpx
import structlog

from libs.common.clock import Clock
from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import Engine, EngineState
from libs.common.errors import MeshError, Unavailable
from services.node_agent.claims import Claims, Wanted
from services.node_agent.engine import EngineFiles
from services.node_agent.engine_facts import EngineReport, EngineSpec
from services.node_agent.machine import failures_in_a_row, pause_before_restart, seems_hung
from services.node_agent.model import EMBEDDING_TYPE, INFERENCE_TYPES
from services.node_agent.process import Launcher, Process

log = structlog.get_logger()

POLL_SECONDS = 0.2
HEALTH_SECONDS = 2.0
FIRST_HEALTH_SECONDS = 0.05
PATIENCE_SECONDS = 30.0
CONSPICUOUS_SECONDS = 6.0
FIND_SECONDS = 15.0
GRACE_SECONDS = 5.0
CLAIM_SECONDS = 2.0
LEDGER_SECONDS = 1.0
"""How long the ledger may take to come up beside us."""


class EngineLost(Unavailable):
    """The engine's process ended, hung, or never came up."""

    code = "engine_lost"


class LlamaEngine:
    """One engine. `run` keeps it running until it is cancelled; `stop` ends it.

    Its process holds a lock for as long as it lives, and a report file tells who it is: so an agent that comes back
    after a `kill -9` finds its engine again, and never starts a second one beside it.

    What it needs of the RAM, as `ram_mb` tells, is claimed before it starts: where it does not fit, the engine waits,
    and its problem is what the ledger says. Where no ledger answers it starts all the same, and claims as soon as one
    does. `make_id` gives another text each time.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        files: EngineFiles,
        launcher: Launcher,
        client: httpx.AsyncClient,
        clock: Clock,
        start_seconds: float,
        changed: Callable[[], None],
        claims: Claims,
        ram_mb: Callable[[], Awaitable[int]],
        make_id: Callable[[], str],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._spec = spec
        self._claims = claims
        self._ram_mb = ram_mb
        self._make_id = make_id
        self._claimed: str | None = None
        self._unclaimed = ""
        self._files = files
        self._launcher = launcher
        self._client = client
        self._clock = clock
        self._start_seconds = start_seconds
        self._changed = changed
        self._prepare = prepare
        self._process: Process | None = None
        self._told: EngineReport | None = None
        self._suspected = asyncio.Event()
        self._adopted = False
        self._restarts = 0
        self._state = EngineState.STARTING
        self._problem: str | None = None

    def now(self) -> Engine:
        told = self._told
        return Engine(
            engine_id=self._spec.engine_id,
            kind="llama.cpp",
            model_name=self._spec.model_name,
            test_model=self._spec.test_model,
            state=self._state,
            device=told.device if told and told.device else "cpu",
            device_reason=told.device_reason if told else "",
            url=told.url if told and self._state == EngineState.READY else None,
            slots=self._spec.slots,
            context_tokens=self._spec.context_tokens,
            problem=self._problem,
        )

    def view(self) -> EngineView:
        process, told = self._process, self._told
        return EngineView(
            **self.now().model_dump(),
            pid=process.pid if process else None,
            memory_mb=process.memory_mb() if process else None,
            started_at=datetime.fromisoformat(told.started_at) if told else None,
            adopted=self._adopted,
            restarts=self._restarts,
        )

    def work_types(self) -> tuple[str, ...]:
        return (*INFERENCE_TYPES, EMBEDDING_TYPE) if self._spec.embeddings else INFERENCE_TYPES

    def suspect(self) -> None:
        self._suspected.set()

    async def run(self) -> NoReturn:
        failures = 0
        while True:
            up_since = self._clock.monotonic()
            try:
                await self._live()
            except MeshError as lost:
                failures = failures_in_a_row(failures, self._clock.monotonic() - up_since)
                pause = pause_before_restart(failures)
                log.warning("engine_lost", engine=self._spec.engine_id, reason=lost.message, again_in_seconds=pause)
                self._become(EngineState.FAILED, lost.message)
            self._restarts += 1
            await self._end_process()
            await self._clock.sleep(pause)

    async def stop(self) -> None:
        """End the engine's process. `run` must have been cancelled before."""
        await self._end_process()
        self._become(EngineState.STOPPED, None)

    async def _live(self) -> NoReturn:
        self._become(EngineState.STARTING, self._problem)
        if self._prepare is not None:
            await self._prepare()
        process = await self._adopt() or await self._start()
        url = await self._listening(process)
        await self._ready(process, url)
        self._become(EngineState.READY, None)
        told = self.now()
        log.info(
            "engine_ready",
            engine=told.engine_id,
            model=told.model_name,
            device=told.device,
            why=told.device_reason,
            url=url,
            pid=process.pid,
            adopted=self._adopted,
        )
        if self._spec.test_model:
            log.warning("test_model", model=told.model_name, note="random weights: it answers nonsense; set MODEL")
        await self._watch(process, url)

    async def _adopt(self) -> Process | None:
        """The engine that an earlier agent left running, if it is the one we want; any other is ended."""
        hold = self._launcher.hold(self._files.lock)
        if hold is not None:
            hold.release()
            return None
        process, told = await self._find()
        self._process, self._told = process, told
        if told.fingerprint == self._spec.fingerprint() and await self._answers_soon(told):
            self._adopted = True
            return process
        log.info("engine_replaced", engine=self._spec.engine_id, pid=process.pid)
        await self._end_process()
        return None

    async def _find(self) -> tuple[Process, EngineReport]:
        """Who holds the lock. One that was started a moment ago has not reported yet."""
        deadline = self._clock.monotonic() + FIND_SECONDS
        while self._clock.monotonic() < deadline:
            told = self._files.report()
            process = self._launcher.find(told.pid) if told else None
            if told and process and process.alive():
                return process, told
            await self._clock.sleep(POLL_SECONDS)
        raise EngineLost(f"another process holds {self._files.lock} and does not say who it is")

    async def _answers_soon(self, told: EngineReport) -> bool:
        """A report without an address is of an engine that still loads; that one is waited for later."""
        return told.url is None or await self._healthy(told.url)

    async def _start(self) -> Process:
        hold = self._launcher.hold(self._files.lock)
        if hold is None:
            raise EngineLost(f"another process took {self._files.lock} first")
        try:
            self._files.clear()
            self._told, self._adopted = None, False
            claim_id = f"{self._spec.engine_id}/{self._make_id()}"
            reserved = await self._reserved(claim_id)
            command = self._command(claim_id)
            starting = asyncio.ensure_future(self._launcher.start(command, log=self._files.log, hold=hold))
            process = await self._kept(starting)
            if reserved:
                await self._commit(claim_id, process)
            return process
        finally:
            hold.release()

    async def _reserved(self, claim_id: str) -> bool:
        """Raises `Conflict` where it does not fit. False: no ledger answers."""
        wanted = await self._wanted(claim_id)
        deadline = self._clock.monotonic() + LEDGER_SECONDS
        while True:
            try:
                await self._claims.reserve(wanted)
            except Unavailable as error:
                if self._clock.monotonic() >= deadline:
                    self._tell_unclaimed(error)
                    return False
                await self._clock.sleep(POLL_SECONDS)
            else:
                return True

    def _tell_unclaimed(self, error: MeshError) -> None:
        """Once for each reason: it is tried again and again."""
        if error.message != self._unclaimed:
            self._unclaimed = error.message
            log.info("engine_unclaimed", engine=self._spec.engine_id, reason=error.message)

    async def _wanted(self, claim_id: str) -> Wanted:
        purpose = f"engine {self._spec.engine_id}: {self._spec.model_name}"
        return Wanted(claim_id=claim_id, ram_mb=await self._ram_mb(), purpose=purpose)

    async def _commit(self, claim_id: str, process: Process) -> bool:
        """Whether it is claimed now. What cannot be claimed is no reason to end what runs."""
        try:
            await self._claims.commit(claim_id, pid=process.pid)
        except MeshError as error:
            log.debug("claim_not_committed", claim=claim_id, reason=error.message)
            return False
        self._claimed = claim_id
        return True

    async def _claim_running(self, process: Process) -> None:
        """Claims for an engine that runs unless it was claimed before: by us, or by the agent that started it."""
        first = self._told.claim if self._told else ""
        later = f"{first or self._spec.engine_id}/{process.pid}"
        if (first and await self._commit(first, process)) or await self._commit(later, process):
            return
        try:
            await self._claims.reserve(await self._wanted(later))
        except MeshError as error:
            self._tell_unclaimed(error)
            return
        await self._commit(later, process)

    async def _kept(self, starting: "asyncio.Future[Process]") -> Process:
        """A cancellation must not lose sight of a process that is just being started."""
        try:
            self._process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._process = await starting
            raise
        return self._process

    def _command(self, claim_id: str) -> Sequence[str]:
        spec = self._spec
        command = [
            *(sys.executable, "-m", "services.node_agent.llama_server"),
            *("--report", str(self._files.report_path), "--fingerprint", spec.fingerprint(), "--claim", claim_id),
            *("--model", spec.model_path, "--name", spec.model_name),
            *("--slots", str(spec.slots), "--context", str(spec.context_tokens)),
            *("--threads", str(spec.threads), "--device", spec.device),
        ]
        return [*command, "--embeddings"] if spec.embeddings else command

    async def _listening(self, process: Process) -> str:
        deadline = self._clock.monotonic() + self._start_seconds
        while self._clock.monotonic() < deadline:
            told = self._files.report()
            if told is not None and told.pid == process.pid:
                self._told = told
                if told.url is not None:
                    return told.url
            if not process.alive():
                raise EngineLost(
                    f"the engine ended {process.ended_how()} before it listened: {self._files.last_words()}"
                )
            await self._clock.sleep(FIRST_HEALTH_SECONDS)
        raise EngineLost(f"the engine did not listen within {self._start_seconds:g} s")

    async def _ready(self, process: Process, url: str) -> None:
        deadline = self._clock.monotonic() + self._start_seconds
        while not await self._healthy(url):
            if not process.alive():
                raise self._dead(process, "while it started")
            if self._clock.monotonic() > deadline:
                raise EngineLost(f"the engine did not become healthy within {self._start_seconds:g} s")
            await self._clock.sleep(FIRST_HEALTH_SECONDS)

    async def _watch(self, process: Process, url: str) -> NoReturn:
        last_answer = look_again = claim_again = self._clock.monotonic()
        cpu_then = process.cpu_seconds()
        while True:
            await self._a_moment()
            if not process.alive():
                raise self._dead(process, "while it served")
            if self._claimed is None and self._clock.monotonic() >= claim_again:
                await self._claim_running(process)
                claim_again = self._clock.monotonic() + CLAIM_SECONDS
            if self._clock.monotonic() < look_again:
                continue
            self._files.bound_log()
            if await self._healthy(url):
                last_answer, cpu_then = self._clock.monotonic(), process.cpu_seconds()
                self._become(EngineState.READY, None)
            elif process.alive():
                self._judge_silence(process, self._clock.monotonic() - last_answer, cpu_then)
            look_again = self._clock.monotonic() + HEALTH_SECONDS

    def _dead(self, process: Process, when: str) -> EngineLost:
        return EngineLost(f"the engine ended {process.ended_how()} {when}: {self._files.last_words()}")

    def _judge_silence(self, process: Process, silent: float, cpu_then: float | None) -> None:
        cpu_now = process.cpu_seconds()
        used = cpu_now - cpu_then if cpu_now is not None and cpu_then is not None else None
        if seems_hung(silent, used, patience_seconds=PATIENCE_SECONDS):
            raise EngineLost(f"the engine has neither answered nor computed for {silent:.0f} s")
        if silent > CONSPICUOUS_SECONDS:
            self._become(EngineState.FAILED, f"the engine does not answer on /health since {silent:.0f} s")

    async def _a_moment(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._suspected.wait()
                self._suspected.clear()

    async def _healthy(self, url: str) -> bool:
        try:
            answer = await self._client.get(f"{url}/health", timeout=HEALTH_SECONDS)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        pid = process.pid
        await process.end(GRACE_SECONDS)
        log.info("engine_ended", engine=self._spec.engine_id, pid=pid)
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            await self._claims.release(claimed)

    def _become(self, state: EngineState, problem: str | None) -> None:
        if (state, problem) != (self._state, self._problem):
            self._state, self._problem = state, problem
            self._changed()


def processors() -> int:
    """Those this process may use, which a container may have fewer of than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def llama_build() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return "not installed"
