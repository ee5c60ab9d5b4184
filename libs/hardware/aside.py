"""Blocking calls beside the event loop, each in a thread that nobody has to wait for.

Not an executor: one stuck call (a dead network disk) would hold a place in the pool for good, and its threads would
keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from libs.common.errors import TimedOut

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """One that is on its way: since when, and what comes of it."""

    since: float
    answer: "asyncio.Future[T]"


class Aside:
    """At most one thread per name: who asks meanwhile gets the same answer, and who does not answer in time is not
    asked again until it has."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call[Any]] = {}

    async def call(self, name: str, function: Callable[[], T], *, seconds: float) -> T:
        """What `function` returns or raises. Raises `TimedOut` after `seconds`, or at once while it is still stuck."""
        loop = asyncio.get_running_loop()
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = _Call(loop.time(), loop.create_future())
            arguments = (loop, call.answer, name, function)
            threading.Thread(target=self._run, args=arguments, name=f"aside-{name}", daemon=True).start()
        left = call.since + seconds - loop.time()
        await asyncio.wait([call.answer], timeout=max(0.0, left))
        if call.answer.done():  # also where the time was over first: the loop itself may have stood still
            return call.answer.result()  # type: ignore[no-any-return]  # the same name asks for the same
        if left <= 0:
            raise TimedOut(f"has not answered since it was asked before (more than {seconds:g} s ago)")
        raise TimedOut(f"does not answer within {seconds:g} s")

    def _run(
        self, loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[T]", name: str, function: Callable[[], T]
    ) -> None:
        def settle(result: T | None, error: BaseException | None) -> None:
            del self._calls[name]
            if error is not None:
                answer.set_exception(error)
                answer.exception()  # nobody may be left to hear of it
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
