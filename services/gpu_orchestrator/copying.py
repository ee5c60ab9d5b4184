"""A copy of this node's open reservations in NATS, so that others see them while the node is away.

The truth is the node's journal: the copy may be a second old, and nothing is ever decided by it.
"""

from collections.abc import Callable, Sequence

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.base import node_token
from libs.common.contracts.gpu_orchestrator import Reservation, Reservations
from libs.common.contracts.streams import GPU_RESERVATIONS
from libs.common.errors import NotFound, WrongRevision

KEPT_SECONDS = 86400
AGAIN_SECONDS = 3600.0
MOST_COPIED = 1000
MOST_BYTES = 512 * 1024
"""Half of what a message may hold: ids, owners and purposes may be long."""


async def read_copy(bus: Bus, node_id: str) -> Reservations:
    """As the node last told. Raises `NotFound`, `Unavailable`."""
    entry = await bus.get(GPU_RESERVATIONS, node_token(node_id))
    if entry is None or entry.payload is None:
        raise NotFound(f"Node {node_id!r} has told no reservations within the last day.", node_id=node_id)
    return Reservations.model_validate_json(entry.payload).model_copy(update={"copied": True})


def _first(reservations: Sequence[Reservation]) -> tuple[Reservation, ...]:
    """As many of the oldest as one message takes."""
    kept: list[Reservation] = []
    taken = 0
    for each in reservations[:MOST_COPIED]:
        taken += len(each.model_dump_json())
        if taken > MOST_BYTES:
            break
        kept.append(each)
    return tuple(kept)


class Copying:
    """`tell`: what there is now. `version`: another number whenever that has changed."""

    def __init__(
        self, *, node_id: str, bus: Bus, clock: Clock, tell: Callable[[], Reservations], version: Callable[[], int]
    ) -> None:
        self._key = node_token(node_id)
        self._bus = bus
        self._clock = clock
        self._tell = tell
        self._version = version
        self._copied: tuple[int, int, int] | None = None
        self._copied_at = float("-inf")
        self._revision: int | None = None

    async def copy(self) -> None:
        """Unless the copy says so already. Raises `Unavailable`."""
        # A server that was away, or a bucket that was gone, may have lost what was written before.
        now = self._clock.monotonic()
        current = (self._version(), self._bus.connections, self._bus.made_again)
        if current == self._copied and now - self._copied_at < AGAIN_SECONDS:
            return
        told = self._tell()
        kept = _first(told.reservations)
        left_out = len(told.reservations) - len(kept)
        copied = told.model_copy(update={"reservations": kept, "left_out": left_out})
        if self._revision is None:
            entry = await self._bus.get(GPU_RESERVATIONS, self._key)
            self._revision = 0 if entry is None else entry.revision
        try:
            self._revision = await self._bus.put(
                GPU_RESERVATIONS, self._key, copied, revision=self._revision, ttl_seconds=KEPT_SECONDS
            )
        except WrongRevision:
            self._revision = None  # it expired, or our write came through and its receipt did not: again, with a look
            return
        self._copied, self._copied_at = current, now
