"""Messages in hand: how many at once, and what becomes of them when there is no more time."""

import asyncio
import time

from libs.common.bus.handlers import SLICE_SECONDS, Handlers
from libs.common.bus.transport import Incoming

ANYTHING = Incoming(subject="a.v1", payload=b"")


async def _nothing_more_to_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_for_a_place_when_time_is_up_is_not_begun() -> None:
    handlers, begun = Handlers(), list[Incoming]()

    async def handle(incoming: Incoming) -> None:
        begun.append(incoming)
        await asyncio.Event().wait()

    deliver = handlers.gate("a.v1", handle, 1)
    await deliver(ANYTHING)
    waiting = asyncio.ensure_future(deliver(ANYTHING))
    await _nothing_more_to_run()

    assert await handlers.finish(0.01) == ("a.v1",)
    await asyncio.wait_for(waiting, 5)
    assert len(begun) == 1


async def test_who_waits_for_a_place_is_waited_for() -> None:
    handlers, handled, release = Handlers(), list[Incoming](), asyncio.Event()

    async def handle(incoming: Incoming) -> None:
        await release.wait()
        handled.append(incoming)

    deliver = handlers.gate("a.v1", handle, 1)
    await deliver(ANYTHING)
    waiting = asyncio.ensure_future(deliver(ANYTHING))
    await _nothing_more_to_run()
    finishing = asyncio.create_task(handlers.finish(5))
    await _nothing_more_to_run()
    release.set()

    assert await asyncio.wait_for(finishing, 5) == ()
    assert len(handled) == 2
    await waiting


async def test_what_is_delivered_after_the_end_is_not_begun() -> None:
    handlers, begun = Handlers(), list[Incoming]()

    async def handle(incoming: Incoming) -> None:
        begun.append(incoming)

    deliver = handlers.gate("a.v1", handle, 1)
    await handlers.finish(1)
    await deliver(ANYTHING)

    assert begun == []
    assert await handlers.finish(1) == ()


async def test_what_finds_a_place_is_started_at_once_and_what_finds_none_is_not() -> None:
    handlers, handled, release = Handlers(), list[Incoming](), asyncio.Event()

    async def handle(incoming: Incoming) -> None:
        handled.append(incoming)
        await release.wait()

    gate = handlers.gate("a.v1", handle, 2)
    assert [gate.start(ANYTHING) for _ in range(3)] == [True, True, False]
    await _nothing_more_to_run()
    assert len(handled) == 2

    release.set()
    await _nothing_more_to_run()
    assert gate.start(ANYTHING)
    assert await handlers.finish(5) == ()
    assert len(handled) == 3


async def test_nobody_is_started_before_who_waits_for_a_place() -> None:
    handlers, handled, release = Handlers(), list[bytes](), asyncio.Event()

    async def handle(incoming: Incoming) -> None:
        handled.append(incoming.payload)
        await release.wait()

    gate = handlers.gate("a.v1", handle, 1)
    assert gate.start(ANYTHING)
    waiting = [asyncio.ensure_future(gate(Incoming(subject="a.v1", payload=word))) for word in (b"1", b"2")]
    await _nothing_more_to_run()
    release.set()
    while gate.start(Incoming(subject="a.v1", payload=b"3")) is False:
        await asyncio.sleep(0)

    await asyncio.gather(*waiting)
    assert await handlers.finish(5) == ()
    assert handled == [b"", b"1", b"2", b"3"]


async def test_what_is_started_after_the_end_is_not_begun() -> None:
    handlers, begun = Handlers(), list[Incoming]()

    async def handle(incoming: Incoming) -> None:
        begun.append(incoming)

    gate = handlers.gate("a.v1", handle, 1)
    await handlers.finish(1)

    assert gate.start(ANYTHING)
    assert await handlers.finish(1) == ()
    assert begun == []


async def test_a_receiver_that_is_cancelled_while_it_waits_holds_up_nothing() -> None:
    handlers, release = Handlers(), asyncio.Event()

    async def handle(incoming: Incoming) -> None:
        await release.wait()

    deliver = handlers.gate("a.v1", handle, 1)
    await deliver(ANYTHING)
    waiting = asyncio.ensure_future(deliver(ANYTHING))
    await _nothing_more_to_run()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    release.set()

    assert await handlers.finish(5) == ()


async def test_in_turn_each_message_is_handled_before_the_next_is_taken() -> None:
    handlers, handled = Handlers(), list[bytes]()

    async def handle(incoming: Incoming) -> None:
        await asyncio.sleep(0)
        handled.append(incoming.payload)

    deliver = handlers.in_turn("a.v1", handle)
    for number in range(5):
        await deliver(Incoming(subject="a.v1", payload=b"%d" % number))

        assert handled[-1] == b"%d" % number


async def test_in_turn_many_messages_leave_the_others_their_turn() -> None:
    handlers, turns = Handlers(), list[int]()

    async def handle(incoming: Incoming) -> None:
        until = time.perf_counter() + 2 * SLICE_SECONDS
        while time.perf_counter() < until:
            pass

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    deliver = handlers.in_turn("a.v1", handle)
    for _ in range(5):
        await deliver(ANYTHING)
    other.cancel()

    assert len(turns) >= 5


async def test_in_turn_what_is_not_finished_in_time_is_cancelled_and_nothing_more_is_begun() -> None:
    handlers, begun = Handlers(), list[Incoming]()

    async def handle(incoming: Incoming) -> None:
        begun.append(incoming)
        await asyncio.Event().wait()

    deliver = handlers.in_turn("a.v1", handle)
    hanging = asyncio.ensure_future(deliver(ANYTHING))
    await _nothing_more_to_run()

    assert await handlers.finish(0.01) == ("a.v1",)
    assert hanging.cancelled()
    await deliver(ANYTHING)
    assert len(begun) == 1
