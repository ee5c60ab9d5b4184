"""An engine that was asked for, as a process of its own: begun once, found again, watched, ended with its group."""

import asyncio
import contextlib
import math
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import httpx
import structlog

from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import EngineProgram, HostedEngine, StartEngine
from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import Engine, EngineState
from libs.common.errors import Forbidden, MeshError, Unavailable
from services.node_agent.engine_metrics import requests_in_hand
from services.node_agent.hosted import Begun, Ended, EngineContainers, HostedFiles
from services.node_agent.hosted_command import command_of, contained, container_name, gated, opening, program_of
from services.node_agent.hosted_door import EngineAddress
from services.node_agent.last_words import telling
from services.node_agent.machine import seems_hung
from services.node_agent.model import INFERENCE_TYPES
from services.node_agent.process import Launcher, Process, WaitingProcess

log = structlog.get_logger()

POLL_SECONDS = 0.2
HEALTH_SECONDS = 2.0
FIRST_HEALTH_SECONDS = 0.2
PATIENCE_SECONDS = 30.0
LAST_WORDS = 8000
READ_FOR_THEM = 400_000
QUIET_LOOKS = 2

Commit = Callable[[StartEngine, int, str | None], Awaitable[None]]
"""Makes the reservation that of the process with this number, or of the container where there is one. Raises
`MeshError`."""


class HostedProcess:
    """See `Hosted`. `test_model` makes the model for an engine that names none."""

    def __init__(
        self,
        asked: StartEngine,
        *,
        files: HostedFiles,
        launcher: Launcher,
        client: httpx.AsyncClient,
        clock: Clock,
        allowed: Mapping[str, str],
        address: EngineAddress,
        containers: EngineContainers | None,
        commit: Commit,
        test_model: Callable[[], Awaitable[str]],
        changed: Callable[[], None],
    ) -> None:
        self.asked = asked
        self._files = files
        self._launcher = launcher
        self._client = client
        self._clock = clock
        self._allowed = allowed
        self._commit = commit
        self._containers = containers
        self._test_model = test_model
        self._changed = changed
        self._begun = files.begun() or Begun(asked=asked, port=0, at=clock.now(), host=address.host, told=address.told)
        self._address = replace(address, host=self._begun.host, told=self._begun.told)
        self._ended = files.ended()
        self._process: Process | None = None
        self._adopted = False
        self._ready = False
        self._problem = ""
        self._ending: str | None = None
        self._drained_by = math.inf
        self._said_last: str | None = None
        self._suspected = asyncio.Event()

    # What others see

    @property
    def _state(self) -> EngineState:
        if self._ended is not None:
            return EngineState.STOPPED if self._ended.asked else EngineState.FAILED
        if self._ending is not None:
            return EngineState.STOPPED
        return EngineState.READY if self._ready and not self._problem else EngineState.STARTING

    @property
    def _url(self) -> str | None:
        return self._address.near(self._begun.port) if self.asked.serves and self._begun.port else None

    @property
    def _far_url(self) -> str | None:
        return self._address.far(self._begun.port) if self._url else None

    def now(self) -> Engine:
        state = self._state
        return Engine(
            engine_id=f"{self.asked.instance}.{self.asked.replica}",
            kind=self.asked.program,
            model_name=self.asked.model_name,
            test_model=self._is_test_model(),
            state=state,
            device=self.asked.device,
            device_reason="as it was deployed",
            url=self._url if state is EngineState.READY else None,
            far_url=self._far_url if state is EngineState.READY else None,
            slots=self.asked.slots,
            context_tokens=self.asked.context_tokens,
            problem=self._reason() or None,
        )

    def view(self) -> EngineView:
        process = self._process
        return EngineView(
            **self.now().model_dump(),
            pid=process.pid if process else None,
            memory_mb=process.memory_mb() if process else None,
            started_at=self._begun.at,
            adopted=self._adopted,
        )

    def work_types(self) -> tuple[str, ...]:
        return INFERENCE_TYPES if self.asked.serves else ()

    def suspect(self) -> None:
        self._suspected.set()

    def tell(self) -> HostedEngine:
        ended, state = self._ended, self._state
        return HostedEngine(
            instance=self.asked.instance,
            replica=self.asked.replica,
            generation=self.asked.generation,
            rank=self.asked.rank,
            program=self.asked.program,
            model_name=self.asked.model_name,
            state=state,
            pid=self._process.pid if self._process else None,
            url=self._far_url,
            started_at=self._begun.at,
            ended_at=ended.at if ended else None,
            exit_code=ended.exit_code if ended else None,
            reason=self._reason(),
            last_words=self._last_words() if state is EngineState.FAILED else "",
        )

    def _last_words(self) -> str:
        """Read once: who asks how engines are asks every second."""
        if self._said_last is None:
            self._said_last = telling(self.log(READ_FOR_THEM), LAST_WORDS)
        return self._said_last

    def log(self, characters: int) -> str:
        return self._files.last_characters(characters)

    # Its life

    async def start(self) -> None:
        program = program_of(self.asked, self._allowed)
        test_model = await self._test_model() if self._is_test_model() else ""
        port = free_port(self._address.host) if self.asked.serves else 0
        command = command_of(
            self.asked,
            program,
            host=self._address.host,
            port=port,
            python=sys.executable,
            report=str(self._files.report),
            key_file=self._files.keep_key(self._address.api_key) if self._address.api_key else "",
            scratch=str(self._files.scratch),
            test_model=test_model,
        )
        self._begun = replace(self._begun, port=port, at=self._clock.now())
        self._files.begin(self._begun)
        process: WaitingProcess | None = None
        environment = self.asked.environment | self._address.environment
        try:
            container = await self._contain(port, environment)
            if container is not None:
                command = [sys.executable, *container.following]
            process = await self._begin(command)
            self._begun = replace(self._begun, pid=process.pid, started=process.started())
            self._files.begin(self._begun)
            await self._commit(self.asked, process.pid, container.id if container else None)
        except BaseException as error:
            if process is not None:
                await process.end(0)
            await self._uncontain()
            self._close(asked=True, process=None, reason=str(error) or "the agent was stopped")
            raise
        process.go(opening(environment))
        log.info("engine_begun", instance=self.asked.instance, rank=self.asked.rank, pid=process.pid, port=port)

    async def _contain(self, port: int, environment: Mapping[str, str]) -> "_Container | None":
        if self.asked.container is None:
            return None
        if self._containers is None:
            raise Forbidden("engines may not run in containers here; see ENGINE_IMAGES", field="runtime")
        host = self._address.host
        engine = contained(self.asked, self.asked.container, host=host, port=port, environment=environment)
        return _Container(await self._containers.begin(engine), self._containers.following(engine.name))

    async def _uncontain(self) -> None:
        """Nothing of it may stay, whatever ended."""
        if self.asked.container is not None and self._containers is not None:
            try:
                await self._containers.remove(container_name(self.asked))
            except Unavailable as error:
                log.warning("container_left", instance=self.asked.instance, reason=error.message)

    async def _begin(self, command: Sequence[str]) -> WaitingProcess:
        hold = self._launcher.hold(self._files.lock)
        if hold is None:
            raise Unavailable(f"another process holds {self._files.lock}")
        try:
            process = await self._launcher.start_waiting(gated(command), log=self._files.log, hold=hold)
            self._process = process
            return process
        finally:
            hold.release()

    async def adopt(self) -> bool:
        pid = self._begun.pid
        hold = self._launcher.hold(self._files.lock)
        process = self._launcher.find(pid) if pid is not None and hold is None else None
        if process is not None and process.alive():
            self._process, self._adopted = process, True
            log.info("engine_adopted", instance=self.asked.instance, rank=self.asked.rank, pid=pid)
            return True
        if hold is not None:
            hold.release()
        if pid is not None:  # vLLM's scheduler and ranks live on when its door is killed, and keep their memory
            await self._launcher.end_rest(pid, self._begun.started)
        await self._uncontain()
        self._close(asked=False, process=None, reason="it ended while no agent watched it")
        return False

    async def watch(self) -> None:
        process = self._process
        assert process is not None
        self._ready = not self.asked.serves
        last_answer = next_look = self._clock.monotonic()
        cpu_then = process.cpu_seconds()
        while process.alive():
            if self._clock.monotonic() >= next_look and self.asked.serves:
                self._files.bound_log()
                if await self._healthy():
                    last_answer, cpu_then = self._clock.monotonic(), process.cpu_seconds()
                    self._become(ready=True, problem="")
                elif self._ready and self._hangs(process, self._clock.monotonic() - last_answer, cpu_then):
                    await process.end(0)
                    await self._uncontain()
                    self._close(asked=False, process=None, reason="it neither answered nor computed, and was ended")
                    return
                next_look = self._clock.monotonic() + (HEALTH_SECONDS if self._ready else FIRST_HEALTH_SECONDS)
            await self._a_moment()
        await process.end(0)
        if self._ending is None:
            await self._uncontain()
            self._close(asked=False, process=process, reason=f"it ended {process.ended_how()}")

    async def end(self, reason: str, grace_seconds: float, drain_seconds: float = 0.0) -> None:
        if self._ended is not None:
            return
        self._ending = reason
        self._changed()
        self.hurry(drain_seconds)
        process = self._process
        if process is not None:
            await self._drained(process)
            await process.end(grace_seconds)
        await self._uncontain()
        self._close(asked=True, process=process, reason=reason)

    def hurry(self, drain_seconds: float) -> None:
        self._drained_by = min(self._drained_by, self._clock.monotonic() + drain_seconds)

    async def _drained(self, process: Process) -> None:
        """Two looks in a row, because who was just told its address may be on the way."""
        quiet = 0 if self.asked.serves and self._ready else QUIET_LOOKS
        while quiet < QUIET_LOOKS and self._clock.monotonic() < self._drained_by and process.alive():
            quiet = quiet + 1 if await self._is_idle() else 0
            await self._clock.sleep(POLL_SECONDS)

    async def _is_idle(self) -> bool:
        try:
            answer = await self._client.get(f"{self._url}/metrics", timeout=HEALTH_SECONDS)
        except httpx.HTTPError:
            return False
        return requests_in_hand(answer.text) == 0

    def _close(self, *, asked: bool, process: Process | None, reason: str) -> None:
        if self._ended is not None:
            return
        code = process.exit_code() if process is not None else None
        self._ended = Ended(at=self._clock.now(), asked=asked, exit_code=code, reason=reason)
        self._process = None
        log.info("engine_ended", instance=self.asked.instance, rank=self.asked.rank, reason=reason, exit_code=code)
        self._changed()
        try:
            self._files.end(self._ended)
        except MeshError as error:  # the lock tells the next agent that nothing runs
            log.warning("engine_end_not_kept", instance=self.asked.instance, reason=error.message)

    def _hangs(self, process: Process, silent: float, cpu_then: float | None) -> bool:
        cpu_now = process.cpu_seconds()
        counted = cpu_now is not None and cpu_then is not None and self.asked.container is None
        used = (cpu_now or 0.0) - (cpu_then or 0.0) if counted else None
        if silent > 3 * HEALTH_SECONDS:
            self._become(ready=True, problem=f"it does not answer on /health since {silent:.0f} s")
        return seems_hung(silent, used, patience_seconds=PATIENCE_SECONDS)

    def _become(self, *, ready: bool, problem: str) -> None:
        if (ready, problem) != (self._ready, self._problem):
            self._ready, self._problem = ready, problem
            log.info("engine_looked_at", instance=self.asked.instance, ready=ready, problem=problem or None)
            self._changed()

    async def _healthy(self) -> bool:
        try:
            answer = await self._client.get(f"{self._url}/health", timeout=HEALTH_SECONDS)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def _a_moment(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._suspected.wait()
                self._suspected.clear()

    def _is_test_model(self) -> bool:
        return self.asked.program is EngineProgram.LLAMA and "--model" not in self.asked.arguments

    def _reason(self) -> str:
        return self._ended.reason if self._ended else self._ending or self._problem


@dataclass(frozen=True, slots=True)
class _Container:
    id: str
    following: Sequence[str]


def free_port(host: str) -> int:
    """One that nobody listens on now. An engine that finds it taken ends, and is started again on another."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
