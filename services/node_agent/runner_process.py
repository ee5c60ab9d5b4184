"""Functions in processes of their own: slower than threads, but they can be ended, with all that they started."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.function_call import name_in
from services.node_agent.function_facts import END_OF_OUTPUT, LARGEST_RESULT
from services.node_agent.model import Holder, JobFailed
from services.node_agent.runner import Began, FunctionJobs, Tell, unnoticed

SEEN_GPUS = "CUDA_VISIBLE_DEVICES"
PIECE_BYTES = 64 * 1024
PAUSE_SECONDS = 0.01
LAST_WORDS_SECONDS = 0.5


class _Caller:
    """One process, which calls one function at a time."""

    def __init__(self, process: Process, answers: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self._process = process
        self._answers = answers
        self._transport = transport

    async def call(self, place: str, arguments: Any, tell: Tell) -> Mapping[str, Any] | None:
        """How it ended, as `function_process.py` tells it; None when the process ended instead."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("a process without its pipes")
        call = json.dumps({"place": place, "arguments": arguments}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(call)
            await self._process.stdin.drain()
        answering = asyncio.ensure_future(self._answer(self._process.stdout, tell))
        going = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
            # What it started may keep its pipes open for ever.
            await asyncio.wait({answering}, timeout=LAST_WORDS_SECONDS)
            line = answering.result() if answering.done() else b""
        finally:
            answering.cancel()
            going.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _answer(self, output: asyncio.StreamReader, tell: Tell) -> bytes:
        await _tell_output(output, tell)
        return await self._answers.readline()

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, and after the grace SIGKILL, for its whole group. Returns when it is gone."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._transport.close()

    def ended_how(self) -> str:
        status = self._process.returncode
        if status is None:
            return "in a way we cannot know"
        return f"with {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.returncode is None

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class ProcessRunner(FunctionJobs):
    """See `FunctionRunner`; here a function whose attempt is over is ended. `places` says where each function is."""

    def __init__(
        self, places: Mapping[str, str], *, slots: int, grace_seconds: float, freed: Callable[[], None]
    ) -> None:
        self._places = places
        super().__init__(slots)
        self._grace_seconds = grace_seconds
        self._freed = freed
        self._idle: list[_Caller] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for caller in self._idle:
            self._end_aside(caller, grace_seconds=0)
        await asyncio.gather(*self._ending, return_exceptions=True)

    @property
    def lingering(self) -> int:
        return len(self._ending)

    async def run(self, assignment: Assignment, tell: Tell, began: Began = unnoticed) -> Any:
        payload = assignment.payload or {}
        name = name_in(payload, self._places)
        gpus = assignment.memory.gpu_uuids if assignment.memory else ()
        caller = await self._started(gpus) if gpus else self._from_idle() or await self._started()
        began(Holder(pid=caller.pid))
        try:
            ended = await caller.call(self._places[name], payload.get("arguments"), tell)
        except BaseException:
            await asyncio.shield(self._end_aside(caller, grace_seconds=self._grace_seconds))
            raise
        if ended is None:
            await caller.end(0)
            raise JobFailed("function_died", f"the process of {name} ended {caller.ended_how()}", retryable=True)
        if assignment.memory is None:
            self._idle.append(caller)
        else:  # what it holds on to was promised to this job alone
            await asyncio.shield(self._end_aside(caller, grace_seconds=self._grace_seconds))
        return _result_in(ended)

    def _from_idle(self) -> _Caller | None:
        while self._idle:
            caller = self._idle.pop()
            if caller.alive():
                return caller
            self._end_aside(caller, grace_seconds=0)
        return None

    async def _started(self, gpus: Sequence[str] = ()) -> _Caller:
        """A cancellation must not lose sight of a process that is just being started."""
        starting = asyncio.ensure_future(_start(gpus))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._end_aside(await starting, grace_seconds=0)
            raise

    def _end_aside(self, caller: _Caller, *, grace_seconds: float) -> "asyncio.Task[None]":
        """Whoever waits for it may be cancelled once more: it is ended all the same."""

        def ended(task: "asyncio.Task[None]") -> None:
            self._ending.discard(task)
            self._freed()

        ending = asyncio.create_task(caller.end(grace_seconds))
        self._ending.add(ending)
        ending.add_done_callback(ended)
        return ending


async def _start(gpus: Sequence[str]) -> _Caller:
    """With `gpus` it sees these alone."""
    seen = ("env", f"{SEEN_GPUS}={','.join(gpus)}") if gpus else ()
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(*seen, sys.executable, "-m", "services.node_agent.function_process", str(writing)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
    answers = asyncio.StreamReader(limit=2 * LARGEST_RESULT)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(reading, "rb", buffering=0)
    )
    return _Caller(process, answers, transport)


async def _tell_output(output: asyncio.StreamReader, tell: Tell) -> None:
    """Until its end mark, which may come in pieces, or until the process closes it."""
    held = b""
    while piece := await output.read(PIECE_BYTES):
        held += piece
        text, mark, _ = held.partition(END_OF_OUTPUT)
        if mark:
            _tell_text(text, tell)
            return
        begun = held.rfind(END_OF_OUTPUT[:1])
        kept = held[begun:] if begun >= 0 and END_OF_OUTPUT.startswith(held[begun:]) else b""
        _tell_text(held[: len(held) - len(kept)], tell)
        held = kept
        if len(piece) == PIECE_BYTES:
            # It writes faster than anybody reads: the rest of the agent comes first.
            await asyncio.sleep(PAUSE_SECONDS)
    _tell_text(held, tell)


def _tell_text(text: bytes, tell: Tell) -> None:
    if text:
        tell(text.decode(errors="replace"))


def _result_in(ended: Mapping[str, Any]) -> Any:
    if "failed" in ended:
        raise JobFailed("function_failed", str(ended["failed"]), retryable=True)
    if "bad_result" in ended:
        raise JobFailed("bad_result", str(ended["bad_result"]), retryable=False)
    if "too_large" in ended:
        raise JobFailed("result_too_large", str(ended["too_large"]), retryable=False)
    return ended["result"]
