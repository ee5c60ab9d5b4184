"""Who lets this node take nothing more: its owner, the registry, or its own end."""

from typing import NoReturn

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import QUERY, NodeQuery, NodeStatus
from libs.common.errors import MeshError
from services.node_agent.reports import Reports
from services.node_agent.store import Journal

log = structlog.get_logger()

ASK_SECONDS = 60.0
ANSWER_SECONDS = 5.0


class Draining:
    """What runs goes on; nothing more is taken while `reason` gives one."""

    def __init__(self, bus: Bus, journal: Journal, clock: Clock, reports: Reports, *, node_id: str) -> None:
        self._bus = bus
        self._journal = journal
        self._clock = clock
        self._reports = reports
        self._node_id = node_id
        self._by_owner: str | None = None
        self._by_registry: str | None = None
        self._stopping = False

    def reason(self) -> str | None:
        """None: it takes work."""
        if self._stopping:
            return _worded("", "its agent stops")
        if self._by_owner is not None:
            return _worded(" by its owner", self._by_owner)
        return None if self._by_registry is None else _worded(" by the registry", self._by_registry)

    @property
    def by(self) -> tuple[str, ...]:
        """Everybody who asked for it."""
        return tuple(
            who
            for who, wants in (
                ("owner", self._by_owner is not None),
                ("registry", self._by_registry is not None),
                ("stopping", self._stopping),
            )
            if wants
        )

    async def remember(self) -> None:
        """What the owner said to an earlier run of the agent still holds."""
        self._by_owner = await self._journal.drained()

    async def ask_of_owner(self, reason: str | None) -> None:
        """None: take work again. It is kept before anything follows from it."""
        await self._journal.keep_drained(reason)
        self._by_owner = reason
        self._changed()

    def heard(self, status: NodeStatus) -> None:
        """The registry told something about a node."""
        if status.node_id == self._node_id:
            self._registry_says(status.draining, status.reason.removeprefix("draining: "))

    def stop(self) -> None:
        self._stopping = True
        self._changed()

    async def keep_asking(self) -> NoReturn:
        """The registry tells only what changes, and says nothing twice."""
        while True:
            await self._ask_registry()
            await self._clock.sleep(ASK_SECONDS)

    async def _ask_registry(self) -> None:
        try:
            found = await self._bus.request(
                QUERY, NodeQuery(node_ids=(self._node_id,), limit=1), timeout=ANSWER_SECONDS
            )
        except MeshError:
            # Without a registry what it said last holds.
            return
        for node in found.nodes:
            self._registry_says(node.draining, node.draining_reason)

    def _registry_says(self, draining: bool, reason: str) -> None:
        if draining is not (self._by_registry is not None):
            self._by_registry = reason if draining else None
            self._changed()

    def _changed(self) -> None:
        log.info("draining_changed", by=list(self.by), reason=self.reason())
        self._reports.workload_changed()


def _worded(by: str, reason: str) -> str:
    return f"this node is draining{by}" + (f": {reason}" if reason else "")
