"""Handlers of one connection: several at once, none lost from sight, all ended in time."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from libs.common.bus.transport import Deliver, Incoming

SLICE_SECONDS = 0.003


class Handlers:
    """Owns the tasks in which messages are handled.

    A message counts as in hand from its delivery on, also while it waits for one of the `at_once` places.
    """

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], str] = {}
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def gate(self, subject: str, handle: Callable[[Incoming], Coroutine[Any, Any, None]], at_once: int) -> Deliver:
        """A receiver that starts `handle` in a task of its own and waits while `at_once` of them run."""
        places = asyncio.Semaphore(at_once)

        def ended(task: asyncio.Task[None]) -> None:
            self._running.pop(task)
            places.release()
            self._put_down()

        async def deliver(incoming: Incoming) -> None:
            self._take_up()
            try:
                await places.acquire()
            except BaseException:
                self._put_down()
                raise
            if self._closed:
                places.release()
                self._put_down()
                return
            task = asyncio.create_task(handle(incoming), name=f"handling {subject}")
            self._running[task] = subject
            task.add_done_callback(ended)

        return deliver

    def in_turn(self, subject: str, handle: Callable[[Incoming], Coroutine[Any, Any, None]]) -> Deliver:
        """A receiver that handles each message itself, before it takes the next.

        With a task for each, whatever else is asked would go before the next message, and of many most would wait. So
        they are handled at a stretch, and others get their turn after a slice of time.
        """
        began = time.perf_counter()

        async def deliver(incoming: Incoming) -> None:
            nonlocal began
            task = asyncio.current_task()
            if self._closed or task is None:
                return
            self._take_up()
            self._running[task] = subject
            try:
                await handle(incoming)
            finally:
                del self._running[task]
                self._put_down()
            if time.perf_counter() - began > SLICE_SECONDS:
                await asyncio.sleep(0)
                began = time.perf_counter()

        return deliver

    async def finish(self, deadline_seconds: float) -> Sequence[str]:
        """Wait for what is in hand, then cancel the rest. Returns the subjects of what was cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self._idle.wait()
        self._closed = True
        cut_short = dict(self._running)
        for task in cut_short:
            task.cancel()
        await asyncio.gather(*cut_short, return_exceptions=True)
        return tuple(cut_short.values())

    def _take_up(self) -> None:
        self._in_hand += 1
        self._idle.clear()

    def _put_down(self) -> None:
        self._in_hand -= 1
        if self._in_hand == 0:
            self._idle.set()
