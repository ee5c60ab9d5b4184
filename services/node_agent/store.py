"""The agent's journal: what it accepted and how that ended, so that nothing runs twice and no outcome is lost."""

from collections.abc import Awaitable, Collection, Sequence
from datetime import datetime
from typing import Protocol

from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.model import Attempt, KeptOutput, Outcome


class Journal(Protocol):
    """Every method returns when what it wrote is on disk, and raises `Unavailable` when it could not be written."""

    async def open(self) -> None:
        """Raises `WrongSetting` when another agent uses it."""
        ...

    async def close(self) -> None: ...

    def problem(self) -> str | None:
        """Why it cannot be written now; None when it can."""
        ...

    async def runs(self, boot_id: str) -> frozenset[str]:
        """The boot ids of all runs of the agent since the machine was started: this one is kept among them."""
        ...

    def begin(self, assignments: Sequence[Assignment], at: datetime) -> Awaitable[None]:
        """Keep these attempts, which were never told before. When this returns they outlive the process, and may begin;
        what it returns is done when they are on disk.

        Raises `Unavailable`, and then nothing of it is there. What is returned may raise it too, and then they are kept
        no better than before.
        """
        ...

    async def accept(self, assignments: Sequence[Assignment], at: datetime) -> frozenset[str]:
        """Keep these attempts. Returns the tokens that were not known before: only those are to be started."""
        ...

    async def known(self, tokens: Collection[str]) -> frozenset[str]:
        """Which of these were ever accepted here."""
        ...

    async def ended(self, token: str, outcome: Outcome) -> None: ...

    async def keep_output(self, token: str, output: KeptOutput) -> None:
        """Of the last jobs only: older output makes room."""
        ...

    async def output(self, token: str) -> KeptOutput | None: ...

    async def drained(self) -> str | None:
        """Why the owner of this machine lets it take nothing more; None when it may."""
        ...

    async def keep_drained(self, reason: str | None) -> None: ...

    async def delivered(self, tokens: Collection[str]) -> None:
        """NATS has these outcomes: their results are not kept here any longer. A power failure may bring them back."""
        ...

    async def stopped(self, token: str, at: datetime) -> None:
        """Cancelled or fenced: there will be no outcome."""
        ...

    async def open_attempts(self) -> list[Attempt]:
        """Accepted or ended, and not delivered: what an earlier run of the agent left behind."""
        ...

    async def attempts_at(self, work_id: str) -> list[Attempt]:
        """Of an item, the newest first."""
        ...

    async def recent(self, limit: int) -> list[Attempt]:
        """The attempts accepted last, newest first."""
        ...

    async def forget(self, *, before: datetime, keep: int) -> int:
        """Remove attempts that are over: older than `before`, or beyond the newest `keep`. Returns how many."""
        ...
