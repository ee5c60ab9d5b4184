"""One orchestrator for one machine: two would each give away what the other has promised."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Alone(Protocol):
    def held(self) -> AbstractAsyncContextManager[None]:
        """No other orchestrator of this machine is inside at the same time; the kernel lets the next one in, however
        this one ends. Raises `WrongSetting` while there is another."""
        ...
