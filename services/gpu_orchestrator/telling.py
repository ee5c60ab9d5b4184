"""Tells others what is free: every now and then, and soon after it changed."""

from collections.abc import Awaitable, Callable

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import GPU_STATES, GpuStates
from services.gpu_orchestrator.views import shortened


class Telling:
    """`measure` and `known`: every GPU, measured anew, or as it is known. `standing`: what makes telling worth while,
    when it is another. `least_seconds`: between two changes that are told; those in between are told together.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        measure: Callable[[], Awaitable[GpuStates]],
        known: Callable[[], GpuStates],
        standing: Callable[[], object],
        least_seconds: float,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._measure = measure
        self._known = known
        self._standing = standing
        self._least_seconds = least_seconds
        self._told: object = None
        self._told_at: float | None = None

    async def tell(self) -> None:
        """Publish every GPU's state, measured now. Raises `Unavailable`."""
        await self._publish(await self._measure())

    async def tell_change(self) -> None:
        """Publish every GPU's state, if it was told before and what is free has changed since. Raises `Unavailable`.

        Nothing is measured for it: reservations change the ledger at once, and measured it is every second.
        """
        if self._told_at is None or self._clock.monotonic() - self._told_at < self._least_seconds:
            return
        if self._current() != self._told:
            await self._publish(self._known())

    async def _publish(self, states: GpuStates) -> None:
        current = self._current()
        await self._bus.publish(GPU_STATES, shortened(states))
        self._told, self._told_at = current, self._clock.monotonic()

    def _current(self) -> object:
        """Who was away with NATS has not heard what was told before."""
        return self._bus.connections, self._standing()
