"""Which nodes are drained, asked of the registry: it tells only changes, and we may have been away when it did."""

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import QUERY, NodeQuery
from libs.common.errors import MeshError, Unavailable
from services.work_marshaling.nodes import Nodes

PAGE = 1000
ASKED_EVERY_SECONDS = 30.0
AGAIN_SECONDS = 5.0

_log = structlog.get_logger()


class Drains:
    def __init__(self, bus: Bus, clock: Clock, nodes: Nodes) -> None:
        self._bus = bus
        self._clock = clock
        self._nodes = nodes

    async def run(self) -> None:
        """Runs until cancelled. Without an answer, what was heard last holds."""
        while True:
            pause = ASKED_EVERY_SECONDS
            try:
                self._nodes.hear_drains(await self._drained())
            except Unavailable:
                pause = AGAIN_SECONDS
            except MeshError as error:
                _log.warning("drains_not_known", reason=error.message)
            await self._clock.sleep(pause)

    async def _drained(self) -> frozenset[str]:
        found: set[str] = set()
        after: str | None = None
        while True:
            answer = await self._bus.request(QUERY, NodeQuery(draining=True, limit=PAGE, after=after))
            found.update(node.node_id for node in answer.nodes)
            after = answer.next_after
            if after is None:
                return frozenset(found)
