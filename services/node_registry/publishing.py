"""Tells what happens to nodes, if this is the elected registry; if not, knows what is still to be told."""

import asyncio

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_administration import NodeHistory, NodesCounted
from libs.common.contracts.node_registry import STATUS, NodeStatus
from libs.common.errors import NotFound, Unavailable
from services.node_registry.archiving import Archiving
from services.node_registry.capabilities import Facts
from services.node_registry.election import Election
from services.node_registry.model import Change, Node, Publisher
from services.node_registry.numbering import Numbers
from services.node_registry.rows import capabilities_row, restart_row, status_row
from services.node_registry.untold import Untold, Waiting

log = structlog.get_logger()

UNTOLD = 10_000
"""Changes that wait to be told."""
AGAIN_SECONDS = 1.0


class Publishing:
    """The chronicle of nodes."""

    def __init__(
        self, *, bus: Bus, clock: Clock, election: Election, archiving: Archiving, grace_seconds: float
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._election = election
        self._archiving = archiving
        self._grace = grace_seconds
        self._untold = Untold(UNTOLD)
        self._nodes: dict[str, Node] = {}
        self._numbers: Numbers | None = None
        self._wake = asyncio.Event()

    def changed(self, change: Change, node: Node) -> None:
        self._note(node)
        self._untold.add(change, now=self._clock.monotonic(), elected=self._election.holds())
        self._wake.set()

    def restarted(self, node: Node) -> None:
        self._note(node)
        self._happened(restart_row(node, at=self._clock.now()))

    def altered(self, node: Node, difference: Facts) -> None:
        self._note(node)
        self._happened(capabilities_row(node, difference, at=self._clock.now()))

    def forgotten(self, node_id: str) -> None:
        self._nodes.pop(node_id, None)
        self._untold.forget(node_id)

    async def hear(self, status: NodeStatus) -> None:
        """What a registry told. Our own word is not news."""
        if status.told_by == self._election.holder or status.event_id is None:
            return
        self._untold.heard(status.node_id, (status.state, status.draining))
        self._archiving.keep(status_row(status, number=int(status.at.timestamp() * 1000)))

    def begin(self, numbers: Numbers) -> None:
        self._numbers = numbers
        nodes = list(self._nodes.values())
        now = self._clock.now()
        beliefs = [
            Change(
                node_id=node.node_id,
                previous=None,
                state=node.life.state,
                reason=node.life.reason,
                at=now,
                draining=node.draining,
                boot_id=node.life.boot_id,
            )
            for node in nodes
        ]
        self._untold.begin(beliefs, now=self._clock.monotonic())
        self._archiving.begin(numbers, nodes)
        self._wake.set()

    def seen(self, lease: Publisher) -> None:
        if lease.untold == 0:
            self._untold.presume(before=self._clock.monotonic() - self._grace)
        self._archiving.seen(lease)

    def burden(self) -> tuple[int, float]:
        return len(self._untold), self._archiving.behind_seconds()

    def counted(self, counts: NodesCounted) -> NodesCounted:
        """With our own part in it."""
        own = {"publishing": self._election.holds(), "archive_waiting": self._archiving.waiting}
        return counts.model_copy(update=own)

    async def history(self, node_id: str, *, limit: int, after: str | None) -> NodeHistory:
        """Raises `NotFound` for a node that nobody ever heard of, `Unavailable` and `Malformed`."""
        page = await self._archiving.history(node_id, limit=limit, after=after)
        if not page.events and after is None and node_id not in self._nodes:
            raise NotFound(f"There is no node {node_id!r}, nor was there.", node_id=node_id)
        return page

    async def tell(self) -> None:
        """Runs until cancelled: tells every change in its order, waiting while NATS is away or another one tells."""
        while True:
            waiting = self._untold.first() if self._election.holds() else None
            if waiting is None:
                self._wake.clear()
                await self._wake.wait()
            elif not await self._told(waiting):
                await self._clock.sleep(AGAIN_SECONDS)

    async def upkeep(self) -> None:
        """To be called again and again. Others get their turn between the rows of a few nodes."""
        while self._election.holds() and self._archiving.write_nodes():  # noqa: ASYNC110  # nothing is awaited
            await asyncio.sleep(0)

    async def _told(self, waiting: Waiting) -> bool:
        assert self._numbers is not None  # who holds the lease has them
        number, change = self._numbers.next(), waiting.change
        status = NodeStatus(
            node_id=change.node_id,
            state=change.state,
            previous=change.previous,
            reason=change.reason,
            at=change.at,
            draining=change.draining,
            boot_id=change.boot_id,
            event_id=f"{number:016x}",
            told_by=self._election.holder,
        )
        try:
            await self._bus.publish(STATUS, status)
        except Unavailable:
            return False  # whoever needs to know that NATS is away is told by the readiness check
        self._untold.told(waiting)
        self._archiving.write(status_row(status, number=number))
        return True

    def _note(self, node: Node) -> None:
        self._nodes[node.node_id] = node
        if self._election.holds():
            self._archiving.refresh(node)

    def _happened(self, event: dict[str, object]) -> None:
        if self._election.holds():
            self._archiving.write(event)
        else:
            self._archiving.keep(event)
