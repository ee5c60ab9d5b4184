"""Who is told what happens to nodes."""

from typing import Protocol

from services.node_registry.capabilities import Facts
from services.node_registry.model import Change, Node


class Chronicle(Protocol):
    """Never keeps the registry waiting."""

    def changed(self, change: Change, node: Node) -> None:
        """Its state, or whether it drains."""
        ...

    def restarted(self, node: Node) -> None:
        """It has a new boot id."""
        ...

    def altered(self, node: Node, difference: Facts) -> None:
        """It has something else than before."""
        ...

    def forgotten(self, node_id: str) -> None: ...
