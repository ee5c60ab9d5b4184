"""Asks a vendor's library through a process of its own, which is killed and started anew when it does not answer."""

import asyncio
import contextlib
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import structlog

from libs.common.errors import TimedOut, Unavailable
from libs.hardware.asking import Questions

log = structlog.get_logger()

PROGRAM = (sys.executable, "-m", "libs.hardware.nvml_program")
ANSWER_SECONDS = 2.0
START_SECONDS = 20.0
"""The driver may need many seconds to wake up when nothing else keeps it awake."""
LONGEST_PAUSE_SECONDS = 60.0


class NvmlHelper:
    """Started when it is first asked. `environment` replaces the inherited one."""

    def __init__(
        self,
        *,
        program: Sequence[str] = PROGRAM,
        name: str = "NVML",
        answer_seconds: float = ANSWER_SECONDS,
        start_seconds: float = START_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program
        self._name = name
        self._answer_seconds = answer_seconds
        self._start_seconds = start_seconds
        self._environment = environment
        self._child: Process | None = None
        self._questions: Questions | None = None
        self._first: asyncio.Task[dict[str, Any]] | None = None
        self._turn = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._pause = 0.0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def starting(self) -> bool:
        """Its first answer is still to come, within the time for starting."""
        return self._first is not None

    async def ask(self, what: str = "gpus") -> dict[str, Any]:
        """What the library says of all GPUs, or of what was named before how much is `used`.

        Raises `Unavailable` with the reason, within the time for an answer.
        """
        async with self._turn:
            now = asyncio.get_running_loop().time()
            if now < self._not_before:
                raise Unavailable(f"{self._name} did not answer; it is asked again in at most {self._pause:.0f} s")
            if self._questions is None:
                self._questions = await self._start()
                first = self._told(self._questions.ask("gpus"), self._start_seconds)
                self._first = asyncio.create_task(first, name="nvml-start")
            if not await self._is_started():
                raise TimedOut(f"{self._name} is still starting")
            return await self._answer(self._questions, what)

    def begin(self, what: str) -> Awaitable[dict[str, Any]]:
        """As `ask`; where the process runs the question is on its way when this returns. What it returns must be
        awaited."""
        if self._questions is None or self._first is not None:
            return self.ask(what)
        return self._begun(self._questions, self._questions.ask(what))

    async def restart(self) -> None:
        """NVML sees GPUs that were added only when it is started anew."""
        async with self._turn:
            await self._stop()
            self._not_before = 0.0

    async def close(self) -> None:
        await self.restart()

    async def _is_started(self) -> bool:
        """Its first answer may take long: until then we come back later."""
        if self._first is None:
            return True
        done, _ = await asyncio.wait({self._first}, timeout=self._answer_seconds)
        return bool(done)

    async def _begun(self, questions: Questions, asked: "asyncio.Future[dict[str, Any]]") -> dict[str, Any]:
        try:
            return await self._told(asked, self._answer_seconds)
        except Unavailable:
            async with self._turn:
                if self._questions is questions:
                    await self._give_up()
            raise

    async def _answer(self, questions: Questions, what: str) -> dict[str, Any]:
        first, self._first = self._first, None
        try:
            if first is not None and what == "gpus":
                return first.result()
            return await self._told(questions.ask(what), self._answer_seconds)
        except Unavailable:
            await self._give_up()
            raise

    async def _told(self, asked: "asyncio.Future[dict[str, Any]]", seconds: float) -> dict[str, Any]:
        """Raises `Unavailable`."""
        try:
            async with asyncio.timeout(seconds):
                answer = await asked
        except TimeoutError:
            raise TimedOut(f"{self._name} does not answer within {seconds:g} s") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"the {self._name} process ended: {error or type(error).__name__}") from None
        self._failures = 0
        return answer

    async def _start(self) -> Questions:
        ours, its = socket.socketpair()
        with its:
            try:
                self._child = await asyncio.create_subprocess_exec(
                    *self._program,
                    stdin=its.fileno(),
                    stdout=its.fileno(),
                    stderr=DEVNULL,
                    start_new_session=True,
                    env=self._environment,
                )
            except BaseException:
                ours.close()
                raise
        return Questions(ours)

    async def _give_up(self) -> None:
        """Kill it; each failure in a row doubles the pause before the next try."""
        self._failures += 1
        self._pause = 0.0 if self._failures == 1 else min(LONGEST_PAUSE_SECONDS, 2.0**self._failures)
        self._not_before = asyncio.get_running_loop().time() + self._pause
        log.warning(
            "vendor_process_killed", vendor=self._name, pid=self.pid, failures=self._failures, pause_seconds=self._pause
        )
        await self._stop()

    async def _stop(self) -> None:
        first, self._first = self._first, None
        child, self._child = self._child, None
        questions, self._questions = self._questions, None
        if first is not None:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        if questions is not None:
            questions.close()
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        with contextlib.suppress(TimeoutError):  # a process stuck in the kernel dies when the kernel lets it
            async with asyncio.timeout(1.0):
                await child.wait()
