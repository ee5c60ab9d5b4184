"""Who watches the registry's work."""

from collections.abc import Mapping
from typing import Protocol

from libs.common.contracts.node_registry import NodeState


class Observer(Protocol):
    """Counting never fails what is counted."""

    def heard(self, kind: str) -> None:
        """`kind`: announcement, heartbeat, stranger, conflict, refused or workload."""
        ...

    def changed(self, state: NodeState) -> None: ...

    def seen(self, nodes: Mapping[NodeState, int], *, mass_silence: bool) -> None:
        """How many nodes are in each state now."""
        ...

    def lost(self) -> None:
        """An event found no room on its way into the archive."""
        ...

    def put_aside(self, table: str) -> None:
        """The archive will never take a row for this table."""
        ...

    def elected(self, elected: bool) -> None:
        """Whether this registry tells changes and writes the archive."""
        ...
