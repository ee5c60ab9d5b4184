"""Child processes on Linux and macOS: sessions of their own, and locks that live as long as they do."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from libs.common.errors import TimedOut, Unavailable
from services.node_agent.process import Hold, Process, WaitingProcess

POLL_SECONDS = 0.05
MIB = 1024 * 1024
LAST_CHARACTERS = 2000
CLOCK_SECONDS = 5.0
"""How far apart the starts of one process may be told when the clock was set meanwhile."""
GONE_SECONDS = 5.0


def session_of(pid: int) -> list[psutil.Process]:
    """What runs of the session that a process leads or led, groups of their own too. The kernel gives its number to
    nobody else while any does."""
    found = []
    for number in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if (
                pid in (os.getsid(number), os.getpgid(number))
                and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
            ):
                found.append(psutil.Process(number))
    return found


def rest_of_session(pid: int, started: float) -> list[psutil.Process]:
    """The same, of a session whose leader started then; nothing where the number has been given away since."""
    if psutil.boot_time() > started + CLOCK_SECONDS:
        return []
    found = session_of(pid)
    with contextlib.suppress(psutil.Error):
        for process in found:
            apart = process.create_time() - started
            if apart < -CLOCK_SECONDS or (process.pid == pid and apart > CLOCK_SECONDS):
                return []
    return found


class FileHold:
    """A lock on an open file. It belongs to the open file, so every process that has inherited it holds it too."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        os.close(self.descriptor)


class PosixProcess:
    """Ours through `child`, or one that an earlier agent started."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._child = child

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def started(self) -> float | None:
        try:
            return float(self._process.create_time())
        except psutil.Error:
            return None

    def ended_how(self) -> str:
        if self._child is None or self._child.poll() is None:
            return "in a way we cannot know"
        status = self._child.returncode
        return f"with {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"

    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def go(self, lines: str) -> None:
        """One that died meanwhile does not listen: whoever watches it sees that."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.write(lines.encode())
            self._close_gate()

    def _close_gate(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    def memory_mb(self) -> int | None:
        found = []
        for process in session_of(self.pid):
            with contextlib.suppress(psutil.Error):
                found.append(process.memory_info().rss)
        return sum(found) // MIB if found else None

    def cpu_seconds(self) -> float | None:
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)

    async def end(self, grace_seconds: float) -> None:
        self._signal(signal.SIGTERM)
        # A stopped process would take the signal only when somebody lets it go on.
        self._signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._gone()
        await _kill_all(self.pid)
        await self._gone()
        self._close_gate()

    async def _gone(self) -> None:
        while self.alive():  # noqa: ASYNC110  # a process that is not our child tells nobody that it ended
            await asyncio.sleep(POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if self.alive():
                os.kill(self.pid, number)


async def _kill_all(pid: int) -> None:
    """A process we started leads a session, which may outlive it. Its group goes at once, groups that others made in it
    one process after the other, until none is left that they began meanwhile.

    What was killed gives back its memory only when the kernel is done with it.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GONE_SECONDS):
            while left := session_of(pid):
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                await asyncio.sleep(POLL_SECONDS)


class PosixLauncher:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="launch")

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def hold(self, lock: Path) -> FileHold | None:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return FileHold(descriptor)

    async def start(self, command: Sequence[str], *, log: Path, hold: Hold) -> Process:
        return await self._started(command, log, hold, subprocess.DEVNULL)

    async def start_waiting(self, command: Sequence[str], *, log: Path, hold: Hold) -> WaitingProcess:
        return await self._started(command, log, hold, subprocess.PIPE)

    async def end_rest(self, pid: int, started: float | None) -> None:
        if started is not None and rest_of_session(pid, started):
            await _kill_all(pid)

    async def _started(self, command: Sequence[str], log: Path, hold: Hold, stdin: int) -> PosixProcess:
        if not isinstance(hold, FileHold):
            raise TypeError("the lock is not one of this launcher's")
        try:
            return await self._off_loop(command, log, hold.descriptor, stdin)
        except OSError as error:
            raise Unavailable(f"cannot start {command[0]}: {error}") from error

    async def _off_loop(self, command: Sequence[str], log: Path, descriptor: int, stdin: int) -> PosixProcess:
        def start() -> PosixProcess:
            with log.open("ab") as output:
                child = subprocess.Popen(
                    list(command),
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(descriptor,),
                )
            return PosixProcess(psutil.Process(child.pid), child)

        return await asyncio.get_running_loop().run_in_executor(self._threads, start)

    def find(self, pid: int) -> Process | None:
        try:
            return PosixProcess(psutil.Process(pid))
        except psutil.Error:
            return None

    async def run(self, command: Sequence[str], *, timeout: float) -> tuple[int, str]:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout):
                output, _ = await child.communicate()
        except TimeoutError:
            raise TimedOut(f"{command[0]} did not end within {timeout:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return child.returncode or 0, output.decode(errors="replace")[-LAST_CHARACTERS:]
