"""Jobs that are Python functions, which the owner of this machine enabled by name."""

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import structlog

from libs.common.contracts.work_marshaling import Assignment
from libs.common.errors import WrongSetting
from services.node_agent.function_call import name_in
from services.node_agent.model import FUNCTION_TYPE, JobFailed
from services.node_agent.runner import Tell

log = structlog.get_logger()

Function = Callable[[Any], Any]


class _Threads:
    """Threads that do not keep the process from ending, whatever their function does."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._started = 0
        self._waiting: SimpleQueue[tuple[Future[Any], Function, Any] | None] = SimpleQueue()

    def submit(self, function: Function, arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.put((future, function, arguments))
        if self._started < self._most:
            self._started += 1
            Thread(target=self._work, name=f"function-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        for _ in range(self._started):
            self._waiting.put(None)

    def _work(self) -> None:
        while True:
            item = self._waiting.get()
            if item is None:
                return
            future, function, arguments = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(arguments))
                except BaseException as error:  # noqa: BLE001  # raised where the result is awaited
                    future.set_exception(error)


class FunctionRunner:
    """Calls `function(arguments)` in a thread of its own pool.

    A payload is `{"function": name, "arguments": any JSON}`. A thread cannot be ended from outside: a function whose
    attempt was cancelled or timed out keeps its slot until it returns; `freed` is called then.
    """

    def __init__(self, functions: Mapping[str, Function], *, slots: int, freed: Callable[[], None]) -> None:
        self._functions = functions
        self._slots = slots
        self._freed = freed
        self._threads = _Threads(slots)
        self._lingering: set[Future[Any]] = set()

    async def close(self) -> None:
        """What still runs is left to itself; it cannot be ended, and its attempt is over."""
        self._threads.close()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def lingering(self) -> int:
        self._lingering = {future for future in self._lingering if not future.done()}
        return len(self._lingering)

    def work_types(self) -> tuple[str, ...]:
        return (FUNCTION_TYPE,)

    def refusal(self, assignment: Assignment) -> str | None:
        return None

    async def run(self, assignment: Assignment, tell: Tell) -> Any:
        payload = assignment.payload or {}
        name = name_in(payload, self._functions)
        return await self._called(name, self._functions[name], payload.get("arguments"))

    async def left(self, assignments: Sequence[Assignment]) -> frozenset[str]:
        return frozenset()

    async def forget(self, assignment: Assignment) -> None:
        return None

    def _linger(self, future: Future[Any]) -> None:
        loop = asyncio.get_running_loop()

        def freed(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody needs the slot any more
                loop.call_soon_threadsafe(self._freed)

        self._lingering.add(future)
        future.add_done_callback(freed)

    async def _called(self, name: str, function: Function, arguments: Any) -> Any:
        future = self._threads.submit(function, arguments)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel() and not future.done():
                self._linger(future)
            raise
        except JobFailed:
            raise
        except Exception as error:
            log.info("function_failed", function=name, error=repr(error), exc_info=True)
            raise JobFailed("function_failed", f"{type(error).__name__}: {error}", retryable=True) from error


def load_functions(named: Mapping[str, str], *, variable: str) -> dict[str, Function]:
    """Import what `module:function` names. Raises `WrongSetting` naming the variable."""
    return {name: _load(name, place, variable) for name, place in named.items()}


def _load(name: str, place: str, variable: str) -> Function:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise WrongSetting(f"{variable} names {name}={place}, which cannot be imported: {error}") from error
    if not callable(found):
        raise WrongSetting(f"{variable} names {name}={place}, which is not a function")
    return found  # type: ignore[no-any-return]
