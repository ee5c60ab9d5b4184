"""Payloads and results that are too large for a message: kept as objects, and removed when nobody can ask for them."""

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.objects import Objects, digest_of
from libs.common.clock import Clock
from libs.common.contracts.base import MAX_OBJECT_BYTES, Json, ObjectRef
from libs.common.contracts.streams import INLINE_MOST_BYTES, RESULT_OBJECT, WORK_IN, WORK_OBJECTS, WORK_OUT
from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.errors import TooLarge, Unavailable
from services.work_marshaling.model import WorkItem
from services.work_marshaling.store import Memory

GRACE = timedelta(minutes=10)
SWEEP_SECONDS = 30.0
SWEPT_AT_ONCE = 200
CROWDED_RATIO = 0.5
BREATH = 5_000
READINGS_KEPT = 60

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Reading:
    """How far the inputs had been written at some moment."""

    at: datetime
    in_seq: int
    out_seq: int


def too_large(payload_bytes: int) -> TooLarge:
    """Names the field, its size and the limit."""
    return TooLarge(
        f"payload: {payload_bytes} bytes; at most {MAX_OBJECT_BYTES} are allowed",
        field="payload",
        value=payload_bytes,
        limit=MAX_OBJECT_BYTES,
    )


def reference_to(name: str, content: bytes) -> ObjectRef:
    """Raises `TooLarge`."""
    if len(content) > MAX_OBJECT_BYTES:
        raise too_large(len(content))
    return ObjectRef(name=name, digest=digest_of(content), bytes=len(content))


class Large:
    """`used_bytes` is what the objects take, as it was seen last."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._objects: Objects = bus.objects(WORK_OBJECTS)
        self._bus = bus
        self._clock = clock
        self.used_bytes = 0

    async def put(self, name: str, content: bytes) -> ObjectRef:
        """Raises `StreamFull`, `Unavailable`."""
        return await self._objects.put(name, content)

    async def content(self, ref: ObjectRef) -> Json:
        """Raises `NotFound`, `Malformed`, `Unavailable`."""
        kept: Json = json.loads(await self._objects.get(ref))
        return kept

    async def serve(self, memory: Memory) -> None:
        """Runs while this instance leads."""
        readings: deque[_Reading] = deque(maxlen=READINGS_KEPT)
        while True:
            try:
                await self.sweep(memory, readings)
            except Unavailable as error:
                _log.info("objects_wait", reason=error.message)
            await self._clock.sleep(SWEEP_SECONDS)

    async def sweep(self, memory: Memory, readings: "deque[_Reading]") -> None:
        """Remove objects that no item at hand names.

        One that is not named yet may be on its way, in a message that was not read: so only those go that are older,
        by some minutes, than a moment up to which everything has been read.
        """
        readings.append(await self._reading())
        read = [each.at for each in readings if each.in_seq <= memory.in_seq and each.out_seq <= memory.out_seq]
        state = await self._bus.stream_state(WORK_OBJECTS.stream)
        self.used_bytes = state.bytes
        if not read or not state.messages:
            return
        crowded = state.bytes > CROWDED_RATIO * state.max_bytes
        needed = await _needed(tuple(memory.items.values()), crowded=crowded)
        unnamed = [name for name in await self._objects.names() if name not in needed]
        removed = 0
        for name in unnamed[:SWEPT_AT_ONCE]:
            found = await self._objects.find(name)
            if found is None or found.at < max(read) - GRACE:
                await self._objects.remove(name)
                removed += 1
        if removed:
            _log.info("objects_removed", objects=removed)

    async def _reading(self) -> _Reading:
        now = self._clock.now()
        work, outcomes = await self._bus.stream_state(WORK_IN), await self._bus.stream_state(WORK_OUT)
        return _Reading(now, work.last_sequence, outcomes.last_sequence)


async def _needed(items: tuple[WorkItem, ...], *, crowded: bool) -> set[str]:
    needed: set[str] = set()
    for number, item in enumerate(items, start=1):
        ref = item.spec.payload_ref
        if ref is not None and (item.open or not (crowded or item.status is WorkStatus.COMPLETED)):
            needed.add(ref.name)
        if item.result_bytes > INLINE_MOST_BYTES:
            needed.update(RESULT_OBJECT.format(token=attempt.token) for attempt in item.attempts)
        if number % BREATH == 0:
            await asyncio.sleep(0)
    return needed
