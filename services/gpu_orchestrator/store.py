"""What is kept on the machine: every open reservation, the last ones that ended, and the last token."""

from collections.abc import Sequence
from typing import Protocol

from services.gpu_orchestrator.machine import Held


class Journal(Protocol):
    async def open(self) -> None:
        """Raises `WrongSetting` when another service uses it, `Unavailable`."""
        ...

    async def close(self) -> None: ...

    def problem(self) -> str | None:
        """Why it cannot be written at the moment."""
        ...

    async def write(self, changed: Sequence[Held]) -> None:
        """All of them or none; on disk when this returns. Raises `Unavailable`."""
        ...

    async def read(self) -> tuple[Sequence[Held], int]:
        """Everything kept, oldest first, and the highest token ever given."""
        ...
