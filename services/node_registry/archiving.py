"""Brings what happens to nodes into the archive, and reads it back."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

import structlog

from libs.common.archive.archive import Archive
from libs.common.archive.tables import Equal, Order, Table
from libs.common.archive.writer import ArchiveWriter
from libs.common.clock import Clock
from libs.common.contracts.node_administration import NodeHistory
from libs.common.errors import Malformed, MeshError
from services.node_registry.model import Node, Publisher
from services.node_registry.numbering import Numbers
from services.node_registry.observer import Observer
from services.node_registry.rows import event_of, node_row
from services.node_registry.tables import NODE_EVENTS, NODES

log = structlog.get_logger()

NODES_AT_ONCE = 20
ROOM = 1000
"""Rows of nodes are large: they are made when no more than so many rows wait."""

Event = dict[str, Any]


class Archiving:
    """Events are given to the writer one by one, and wait there while the archive is away. What a node has is written
    once the archive takes it, as it is then. Who is not elected keeps the newest events, and drops what the elected
    registry has archived: if that one dies, the next one has them.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        writer: ArchiveWriter,
        clock: Clock,
        observer: Observer,
        most_rows: int,
        grace_seconds: float,
    ) -> None:
        """`grace_seconds`: what happened is noticed by all registries within this time."""
        self._archive = archive
        self._writer = writer
        self._clock = clock
        self._observer = observer
        self._kept: deque[tuple[float, Event]] = deque(maxlen=most_rows)
        self._grace = grace_seconds
        self._stale: dict[str, Node] = {}
        self._numbers: Numbers | None = None
        self._lost = 0
        self._began = clock.monotonic()

    @property
    def waiting(self) -> int:
        return self._writer.waiting + len(self._stale)

    def write(self, event: Event) -> None:
        """We are elected: this is ours to archive."""
        if self._offered(NODE_EVENTS, event, cursor=int(self._clock.monotonic() * 1000)):
            return
        self._observer.lost()
        self._lost += 1
        if self._lost == 1:
            log.error("archive_events_lost", waiting=self._writer.waiting, reason=self._writer.problem())

    def keep(self, event: Event) -> None:
        """We are not elected, but may have to archive this."""
        self._kept.append((self._clock.monotonic(), event))

    def refresh(self, node: Node) -> None:
        """Its row is to be written anew."""
        self._stale[node.node_id] = node

    def begin(self, numbers: Numbers, nodes: Sequence[Node]) -> None:
        """We were elected: all that the last one may not have archived is ours."""
        self._numbers, self._began = numbers, self._clock.monotonic()
        while self._kept:
            self.write(self._kept.popleft()[1])
        self._stale = {node.node_id: node for node in nodes}

    def seen(self, lease: Publisher) -> None:
        """The elected registry says how far it is."""
        self._stale.clear()
        archived = self._clock.monotonic() - lease.behind_seconds - self._grace
        while self._kept and self._kept[0][0] < archived:
            self._kept.popleft()

    def behind_seconds(self) -> float:
        """For so long the archive has not taken what it was given."""
        if not self._writer.waiting:
            return 0.0
        reached = self._began if self._writer.committed is None else self._writer.committed / 1000
        return max(0.0, self._clock.monotonic() - max(reached, self._began))

    def write_nodes(self) -> bool:
        """Make the rows of some nodes that are to be written anew. False when there are none, or no room for them."""
        numbers = self._numbers
        if numbers is None or not self._stale or self._writer.waiting > ROOM:
            return False
        some = [self._stale.pop(node_id) for node_id in list(islice(self._stale, NODES_AT_ONCE))]
        now = self._clock.now()
        return all(self._offered(NODES, node_row(node, at=now, number=numbers.next())) for node in some)

    def _offered(self, table: Table, row: Event, *, cursor: int | None = None) -> bool:
        """False when there is no room. Strangers say what is in a row: one that no archive would take is put aside."""
        try:
            return self._writer.offer(table, [row], cursor=cursor)
        except Malformed as error:
            self._writer.put_aside(table, row, error.message)
            return True

    async def look(self) -> None:
        """Whether the archive is there; what is wrong shows in `problem`."""
        if self._writer.waiting:
            return
        try:
            await self._archive.ping()
        except MeshError as error:
            log.debug("archive_away", reason=error.message)

    def untried(self) -> bool:
        """Whether the archive was not asked for the first time yet."""
        return self._writer.untried

    def problem(self) -> str | None:
        lost = f"; {self._lost} events were lost, for too many waited" if self._lost else ""
        reason = self._writer.problem() or self._archive.problem()
        return None if reason is None else f"{reason}{lost}"

    async def history(self, node_id: str, *, limit: int, after: str | None) -> NodeHistory:
        """Newest first. Raises `Unavailable`, and `Malformed` for an `after` that no page ended with."""
        page = await self._archive.page(
            NODE_EVENTS,
            [Equal("node_id", node_id)],
            order=Order(column="at", descending=True),
            limit=limit,
            cursor=after,
        )
        return NodeHistory(events=tuple(event_of(row) for row in page.rows), next_after=page.cursor)
