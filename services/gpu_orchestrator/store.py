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

    def write(self, changed: Sequence[Held], then: Then | None = None, *, synced: bool = True) -> Future[None]:
        """All of them or none. When this is done it outlives this process, and if `synced` a power failure too. Raises
        `Unavailable`, now or then.

        `then` is called first, maybe before this returns, with what went wrong or None, also when who waits was
        cancelled.
        """
        ...

    def forget(self, held: Held) -> Future[None]:
        """As if it had never been; its token is not used again. Raises `Unavailable`, now or then."""
        ...

    async def read(self) -> tuple[Sequence[Held], int]:
        """Everything kept, oldest first, and the highest token ever given."""
        ...
