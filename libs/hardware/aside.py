"""Blocking calls beside the event loop, each in a thread that nobody has to wait for.

Not an executor: one stuck call (a dead network disk) would hold a place in the pool for good, and its threads would
keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from libs.common.errors import TimedOut

T = TypeVar("T")


class Aside:
    """At most one thread per name: who does not answer is not asked again until it has."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    async def call(self, name: str, function: Callable[[], T], *, seconds: float) -> T:
        """What `function` returns or raises. Raises `TimedOut` after `seconds`, or at once while it is still stuck."""
        if name in self._busy:
            raise TimedOut(f"has not answered since it was asked before (more than {seconds:g} s ago)")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._busy.add(name)
        arguments = (loop, answer, name, function)
        threading.Thread(target=self._run, args=arguments, name=f"aside-{name}", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(answer)
        except TimeoutError:
            if answer.done():
                raise
            raise TimedOut(f"does not answer within {seconds:g} s") from None

    def _run(
        self, loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[T]", name: str, function: Callable[[], T]
    ) -> None:
        def settle(result: T | None, error: BaseException | None) -> None:
            self._busy.discard(name)
            if answer.cancelled():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = (function(), None)
        except Exception as error:  # noqa: BLE001  # handed to whoever asked
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more
