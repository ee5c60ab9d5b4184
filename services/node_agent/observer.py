"""What the agent tells about its own work. Port of `observer_prometheus.py`."""

from typing import Protocol


class AgentObserver(Protocol):
    def accepted(self, work_type: str) -> None: ...

    def refused(self) -> None: ...

    def ended(self, work_type: str, outcome: str) -> None:
        """`outcome` is `completed`, `stopped` or an error's code; codes come from our code only."""
        ...

    def tokens(self, prompt: int, completion: int) -> None:
        """An engine counted these for one of our jobs."""
        ...

    def stray_removed(self) -> None:
        """A container that an earlier run left, and that nobody needs."""
        ...

    def delivered(self) -> None: ...

    def delivery_failed(self) -> None: ...
