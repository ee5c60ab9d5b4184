"""What is kept on the machine: every open reservation, the last ones that ended, and the last token."""

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Protocol

from services.gpu_orchestrator.machine import Held

Then = Callable[[BaseException | None], None]


class Journal(Protocol):
    async def open(self) -> None:
        """Raises `WrongSetting` when another service uses it, `Unavailable`."""
        ...

    async def close(self) -> None: ...

    def problem(self) -> str | None:
        """Why it cannot be written at the moment."""
        ...

    def write(
        self, changed: Sequence[Held], then: Callable[[BaseException | None], None] | None = None
    ) -> Future[None]:
        """All of them or none; on disk when this is done. Raises `Unavailable`, now or then.

        `then` is called first, with what went wrong or None, also when who waits was cancelled.
        """
        ...

    async def read(self) -> tuple[Sequence[Held], int]:
        """Everything kept, oldest first, and the highest token ever given."""
        ...
