"""One orchestrator for one machine: two each promise what the other has promised."""

from typing import Protocol


class Alone(Protocol):
    def problem(self) -> str | None:
        """Who else gives away the memory of this machine; None from when nobody does. Raises `WrongSetting`."""
        ...

    def close(self) -> None:
        """Let the next one be alone."""
        ...
