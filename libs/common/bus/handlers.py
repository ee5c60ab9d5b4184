"""Handlers of one connection: several at once, none lost from sight, all ended in time."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from libs.common.bus.transport import Deliver, Incoming

SLICE_SECONDS = 0.003

Handle = Callable[[Incoming], Coroutine[Any, Any, None]]


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

    def gate(self, subject: str, handle: Handle, at_once: int) -> "Gate":
        """A receiver that starts `handle` in a task of its own and waits while `at_once` of them run."""
        return Gate(self, subject, handle, at_once)

    @property
    def closed(self) -> bool:
        return self._closed

    def begin(self, subject: str, work: Coroutine[Any, Any, None], ended: Callable[[], None]) -> None:
        """What was taken up is done in a task, and put down after it."""

        def put_down(task: asyncio.Task[None]) -> None:
            del self._running[task]
            ended()
            self.put_down()

        task = asyncio.create_task(work, name=f"handling {subject}")
        self._running[task] = subject
        task.add_done_callback(put_down)

    def in_turn(self, subject: str, handle: Handle) -> Deliver:
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
            self.take_up()
            self._running[task] = subject
            try:
                await handle(incoming)
            finally:
                del self._running[task]
                self.put_down()
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

    def take_up(self) -> None:
        self._in_hand += 1
        self._idle.clear()

    def put_down(self) -> None:
        self._in_hand -= 1
        if self._in_hand == 0:
            self._idle.set()


class Gate:
    """Called, it waits for a place for the message; `start` takes it if there is one."""

    def __init__(self, handlers: Handlers, subject: str, handle: Handle, at_once: int) -> None:
        self._handlers = handlers
        self._subject = subject
        self._handle = handle
        self._places = at_once
        self._room = asyncio.Event()
        self._line = asyncio.Lock()

    async def __call__(self, incoming: Incoming) -> None:
        self._handlers.take_up()
        try:
            async with self._line:
                while not self._places:
                    self._room.clear()
                    await self._room.wait()
        except BaseException:
            self._handlers.put_down()
            raise
        self._begin(incoming)

    def start(self, incoming: Incoming) -> bool:
        """False when it would have to wait."""
        if not self._places or self._line.locked():
            return False
        self._handlers.take_up()
        self._begin(incoming)
        return True

    def _begin(self, incoming: Incoming) -> None:
        if self._handlers.closed:
            self._handlers.put_down()
            return
        self._places -= 1
        self._handlers.begin(self._subject, self._handle(incoming), self._leave)

    def _leave(self) -> None:
        self._places += 1
        self._room.set()
