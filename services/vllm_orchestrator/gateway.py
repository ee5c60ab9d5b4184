"""What the orchestrator needs of a gateway that routes requests by files of configuration."""

from typing import Protocol

from libs.inference.tensorzero import Complaint, Tree


class GatewayFiles(Protocol):
    """Where people keep their part, and where the whole is that a gateway reads."""

    async def own(self) -> Tree:
        """What people wrote. Raises `Unavailable` where it cannot be read."""
        ...

    async def live(self) -> Tree:
        """What a gateway that starts now would read; empty where nothing was put there yet. Raises `Unavailable`."""
        ...

    async def put(self, tree: Tree) -> None:
        """From now on this is live: all of it or, where something goes wrong, none. Raises `Unavailable`."""
        ...


class GatewayJudge(Protocol):
    """Who knows whether a gateway would start."""

    @property
    def by(self) -> str:
        """Who judges, in words."""
        ...

    async def judge(self, tree: Tree) -> list[Complaint]:
        """Nothing where a gateway would start with it. Raises `Unavailable` where that cannot be told now."""
        ...


class GatewayControl(Protocol):
    """The running gateway."""

    async def reload(self) -> None:
        """It reads what is live when this returns. Raises `Unavailable` with what went wrong."""
        ...
