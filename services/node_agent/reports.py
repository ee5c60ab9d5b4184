"""What the agent tells unasked: which attempts it works on, and what it could take."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import WORKLOAD, Engine, NodeWorkload, SlotPool
from libs.common.contracts.work_marshaling import PROGRESS, AttemptProgress, WorkProgress
from libs.common.errors import MeshError
from services.node_agent.machine import renewal_seconds, text_to_keep, text_to_tell
from services.node_agent.model import Running

log = structlog.get_logger()

WORKLOAD_SECONDS = 5.0
LEAST_SECONDS_BETWEEN_WORKLOADS = 0.1
GATHER_SECONDS = 0.05
TEXT_SECONDS = 0.5
MOST_IN_ONE_MESSAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs here and what more would, at one moment."""

    pools: Sequence[SlotPool]
    engines: Sequence[Engine]
    running: Sequence[Running]
    draining: bool


class Reports:
    """Two loops that depend on no job. What could not be told is left out: the next report says how it is then."""

    def __init__(self, bus: Bus, clock: Clock, *, node_id: str, boot_id: str) -> None:
        self._bus = bus
        self._clock = clock
        self._node_id = node_id
        self._boot_id = boot_id
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._new: dict[str, Running] = {}
        self._away = False

    def workload_changed(self) -> None:
        """Tell the workload soon: at most ten times a second."""
        self._changed.set()

    def started(self, running: Running) -> None:
        """Tell soon that this attempt runs."""
        self._new[running.assignment.attempt_token or ""] = running
        self._news.set()

    def produced(self, running: Running, text: str) -> None:
        """Partial output, told with the next progress."""
        running.output.add(text)
        running.untold = text_to_keep(running.untold + text)
        self._news.set()

    async def tell_workload(self, look: Callable[[], Workload]) -> None:
        """Until cancelled: on every change, and every five seconds."""
        while True:
            self._changed.clear()
            await self._tell_workload_once(look())
            await self._clock.sleep(LEAST_SECONDS_BETWEEN_WORKLOADS)
            await self._wait(self._changed, WORKLOAD_SECONDS - LEAST_SECONDS_BETWEEN_WORKLOADS)

    async def tell_progress(self, running: Callable[[], Sequence[Running]]) -> None:
        """Until cancelled: every third of a lease all attempts, and at once those that just started."""
        renewed = self._clock.monotonic()
        while True:
            due = renewed + renewal_seconds(each.assignment.lease_seconds for each in running())
            await self._wait(self._news, max(0.0, due - self._clock.monotonic()))
            if self._news.is_set() and self._clock.monotonic() < due:
                # With others that start at the same moment, in one message; text alone is not urgent.
                await self._clock.sleep(GATHER_SECONDS if self._new else TEXT_SECONDS)
            present = running()
            if self._clock.monotonic() >= due:
                renewed = self._clock.monotonic()
                await self._tell_progress_of(present)
            else:
                new = self._new
                await self._tell_progress_of([each for each in present if each.untold or _token(each) in new])

    async def _tell_progress_of(self, attempts: Sequence[Running]) -> None:
        self._new.clear()
        self._news.clear()
        for start in range(0, len(attempts), MOST_IN_ONE_MESSAGE):
            told = tuple(_progress(each) for each in attempts[start : start + MOST_IN_ONE_MESSAGE])
            message = WorkProgress(node_id=self._node_id, boot_id=self._boot_id, at=self._clock.now(), attempts=told)
            await self._told(self._bus.publish(PROGRESS, message))
        if any(each.untold for each in attempts):
            self._news.set()

    async def _tell_workload_once(self, now: Workload) -> None:
        message = NodeWorkload(
            node_id=self._node_id,
            boot_id=self._boot_id,
            at=self._clock.now(),
            slots=sum(pool.slots for pool in now.pools),
            free_slots=sum(pool.free_slots for pool in now.pools),
            work_types=tuple(dict.fromkeys(each for pool in now.pools for each in pool.work_types)),
            engines=tuple(now.engines),
            running=tuple(_token(each) for each in now.running),
            draining=now.draining,
            pools=tuple(now.pools),
        )
        await self._told(self._bus.publish(WORKLOAD, message))

    async def _told(self, publishing: Awaitable[None]) -> None:
        try:
            await publishing
        except MeshError as error:
            if not self._away:
                log.warning("reports_wait", code=error.code, reason=error.message)
            self._away = True
        else:
            self._away = False

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


def _token(running: Running) -> str:
    return running.assignment.attempt_token or ""


def _progress(running: Running) -> AttemptProgress:
    """Takes from the text that waits as much as fits."""
    told, running.untold = text_to_tell(running.untold)
    return AttemptProgress(attempt_token=_token(running), work_id=running.assignment.work_id, text=told or None)
