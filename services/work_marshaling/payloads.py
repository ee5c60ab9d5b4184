"""Payloads that are too large for the memory: they stay in WORK_IN until an attempt needs them."""

from collections import OrderedDict
from typing import Any

from libs.common.bus.bus import Bus, Stored
from libs.common.contracts.streams import WORK_IN
from libs.common.contracts.work_marshaling import SUBMIT, SUBMITTED
from libs.common.errors import Malformed
from services.work_marshaling.identity import payload_text
from services.work_marshaling.model import Submission, WorkItem

MESSAGES_KEPT = 8


def submissions(bus: Bus, stored: Stored) -> tuple[Submission, ...]:
    """What a message of WORK_IN submits. Raises `Malformed`."""
    if stored.subject == SUBMITTED.subject:
        return bus.decode(SUBMITTED, stored).items
    return (bus.decode(SUBMIT, stored),)


class Payloads:
    """The last few messages stay read: the items of one batch are often assigned together."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._read: OrderedDict[int, tuple[Submission, ...]] = OrderedDict()

    async def of(self, item: WorkItem) -> bytes | None:
        """As JSON. None when it is gone for good. Raises `Unavailable` when it cannot be read now."""
        if item.spec.payload is not None:
            return item.spec.payload
        items = self._read.get(item.sequence)
        if items is None:
            stored = await self._bus.message(WORK_IN, item.sequence)
            if stored is None:
                return None
            items = self._keep(stored)
        return payload_text(items[item.index].payload).encode() if item.index < len(items) else None

    async def kept(self, item: WorkItem) -> dict[str, Any] | None:
        """Of an item that ended: as long as WORK_IN happens to have it. Raises `Unavailable`."""
        stored = await self._bus.message(WORK_IN, item.sequence)
        if stored is None or stored.at != item.submitted_at:
            return None
        items = submissions(self._bus, stored)
        return dict(items[item.index].payload) if item.index < len(items) else None

    def _keep(self, stored: Stored) -> tuple[Submission, ...]:
        try:
            items = submissions(self._bus, stored)
        except Malformed:
            return ()
        self._read[stored.sequence] = items
        if len(self._read) > MESSAGES_KEPT:
            self._read.popitem(last=False)
        return items
