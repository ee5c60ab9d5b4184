"""What the agent needs of child processes that may outlive it. Port of `process_posix.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """A process that we started, or found again."""

    @property
    def pid(self) -> int: ...

    def alive(self) -> bool: ...

    def started(self) -> float | None:
        """When, in seconds of the Unix epoch; None for one that is gone."""
        ...

    def ended_how(self) -> str:
        """Its exit status or signal in words, where that can be known."""
        ...

    def exit_code(self) -> int | None:
        """Of one that ended, negative for a signal; None where that cannot be known."""
        ...

    def memory_mb(self) -> int | None:
        """Resident memory of its session, measured; None for one that is gone."""
        ...

    def cpu_seconds(self) -> float | None:
        """Processor time used so far."""
        ...

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, and after the grace SIGKILL for all of its session. Returns when all of that is gone."""
        ...


class WaitingProcess(Process, Protocol):
    """One that waits for a word before it becomes what it is to be, and ends when we do."""

    def go(self, lines: str) -> None:
        """Give it these lines."""
        ...


class Hold(Protocol):
    """A lock in hand."""

    def release(self) -> None:
        """Let go of our share; a child that was started with it keeps its own until it ends."""
        ...


class Launcher(Protocol):
    def hold(self, lock: Path) -> Hold | None:
        """Take a lock; None while somebody else, or a process started with it, has it."""
        ...

    async def start(self, command: Sequence[str], *, log: Path, hold: Hold) -> Process:
        """Start a process in a session of its own, output to `log`. It keeps the lock for as long as it lives."""
        ...

    async def start_waiting(self, command: Sequence[str], *, log: Path, hold: Hold) -> WaitingProcess:
        """The same, for a command that waits for lines on its standard input."""
        ...

    async def end_rest(self, pid: int, started: float | None) -> None:
        """SIGKILL for what is left of the session that this process led, if it is still the one that started then."""
        ...

    def find(self, pid: int) -> Process | None:
        """The process that has this number now, if any."""
        ...

    async def run(self, command: Sequence[str], *, timeout: float) -> tuple[int, str]:
        """Run to its end: exit status and the last lines of its output. Raises `TimedOut`."""
        ...
