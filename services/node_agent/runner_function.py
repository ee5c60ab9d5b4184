"""Jobs that are Python functions, which the owner of this machine enabled by name."""

import asyncio
import contextlib
import importlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import structlog

from libs.common.contracts.work_marshaling import Assignment
from libs.common.errors import WrongSetting
from services.node_agent.function_call import name_in
from services.node_agent.model import Holder, JobFailed
from services.node_agent.runner import Began, FunctionJobs, Tell, unnoticed

log = structlog.get_logger()

Function = Callable[[Any], Any]


@dataclass(slots=True, eq=False)
class _Call:
    """`ended` gets what the function returned, and what it raised. `over`: its thread does something else by now."""

    function: Function
    arguments: Any
    ended: "asyncio.Future[_Ended]"
    over: bool = False


_Ended = tuple[Any, BaseException | None]


class _Threads:
    """Threads that do not keep the process from ending, whatever their function does.

    A thread is started only when all others have something to do: to start one holds up the loop. The loop is woken
    once for all that ended by the time it looks. `abandoned`: a call is over that nobody waited for.
    """

    def __init__(self, most: int, abandoned: Callable[[_Call], None]) -> None:
        self._most = most
        self._abandoned = abandoned
        self._started = 0
        self._in_hand = 0
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._over: deque[tuple[_Call, _Ended]] = deque()
        self._woken = False

    def submit(self, function: Function, arguments: Any) -> _Call:
        call = _Call(function, arguments, asyncio.get_running_loop().create_future())
        self._waiting.put(call)
        self._in_hand += 1
        if self._started < min(self._in_hand, self._most):
            self._started += 1
            Thread(target=self._work, name=f"function-{self._started}", daemon=True).start()
        return call

    def close(self) -> None:
        for _ in range(self._started):
            self._waiting.put(None)

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            ended: _Ended = (None, None)
            if not call.ended.cancelled():
                try:
                    ended = (call.function(call.arguments), None)
                except BaseException as error:  # noqa: BLE001  # told where it is awaited
                    ended = (None, error)
            self._over.append((call, ended))
            if not self._woken:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    call.ended.get_loop().call_soon_threadsafe(self._look)

    def _look(self) -> None:
        # The flag first: what is put down from here on wakes the loop again.
        self._woken = False
        while self._over:
            call, ended = self._over.popleft()
            call.over = True
            self._in_hand -= 1
            if call.ended.cancelled():
                self._abandoned(call)
            else:
                call.ended.set_result(ended)


class FunctionRunner(FunctionJobs):
    """Calls `function(arguments)` in a thread of its own pool.

    A payload is `{"function": name, "arguments": any JSON}`. A thread cannot be ended from outside: a function whose
    attempt was cancelled or timed out keeps its slot until it returns; `freed` is called then.
    """

    def __init__(self, functions: Mapping[str, Function], *, slots: int, freed: Callable[[], None]) -> None:
        self._functions = functions
        super().__init__(slots)
        self._freed = freed
        self._threads = _Threads(slots, self._no_longer)
        self._lingering: set[_Call] = set()

    async def close(self) -> None:
        """What still runs is left to itself; it cannot be ended, and its attempt is over."""
        self._threads.close()

    @property
    def lingering(self) -> int:
        return len(self._lingering)

    async def run(self, assignment: Assignment, tell: Tell, began: Began = unnoticed) -> Any:
        began(Holder(pid=os.getpid()))
        payload = assignment.payload or {}
        name = name_in(payload, self._functions)
        return await self._called(name, self._functions[name], payload.get("arguments"))

    def _no_longer(self, call: _Call) -> None:
        if call in self._lingering:
            self._lingering.discard(call)
            self._freed()

    async def _called(self, name: str, function: Function, arguments: Any) -> Any:
        call = self._threads.submit(function, arguments)
        try:
            result, error = await call.ended
        except asyncio.CancelledError:
            if not call.over:
                self._lingering.add(call)
            raise
        if error is None:
            return result
        if isinstance(error, JobFailed):
            raise error
        log.info("function_failed", function=name, error=repr(error), exc_info=error)
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
