"""Doing something again and again: patient when something it needs is away, loud about everything else."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from libs.common.clock import Clock
from libs.common.errors import Unavailable

log = structlog.get_logger()


class LoopObserver(Protocol):
    """Is told how the rounds of loops end."""

    def loop_round(self, loop: str, outcome: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """A `Loop` that knows its name. Made by `every`."""

    name: str
    period_seconds: float
    action: Callable[[], Awaitable[None]]
    clock: Clock

    async def __call__(self, observer: LoopObserver | None = None) -> None:
        away = False
        while True:
            reason = await self._round()
            if observer is not None:
                observer.loop_round(self.name, "ok" if reason is None else "unavailable")
            if reason is not None and not away:
                log.warning("loop_waits", loop=self.name, reason=reason.message, code=reason.code)
            if reason is None and away:
                log.info("loop_goes_on", loop=self.name)
            away = reason is not None
            await self.clock.sleep(self.period_seconds)

    async def _round(self) -> Unavailable | None:
        try:
            await self.action()
        except Unavailable as reason:
            return reason
        return None


def every(period_seconds: float, action: Callable[[], Awaitable[None]], clock: Clock, *, name: str) -> Periodic:
    """A loop that runs `action` at once and then every `period_seconds` after it ended.

    `Unavailable` is logged once per outage and tried again next time; any other exception leaves the loop, which ends
    the process.
    """
    return Periodic(name=name, period_seconds=period_seconds, action=action, clock=clock)
