"""Durable consumers: each message settled by exactly one of those who share it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.transport import Delivery, Stored
from libs.common.contracts.base import DEAD_LETTER
from libs.common.contracts.streams import DEAD_LETTERS, Stream
from libs.common.errors import Malformed, Unavailable
from tests.contract.bus.parts import Heard, Mesh, Note, soon, until
from tests.recording import RecordingObserver


@asynccontextmanager
async def _pulling(mesh: Mesh, stream: Stream, durable: str, **options: Any) -> AsyncIterator[AsyncIterator[Delivery]]:
    deliveries = (await mesh.transport()).pull(stream.name, durable=durable, **options)
    async with aclosing(cast(Any, deliveries)):
        yield deliveries


@asynccontextmanager
async def _consuming(bus: Bus, stream: Stream, handler: Any, **options: Any) -> AsyncIterator[None]:
    consuming = asyncio.create_task(bus.consume(stream, durable="worker", handler=handler, **options))
    yield
    assert not consuming.done(), consuming.result()
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)


async def _filled(mesh: Mesh, count: int = 1) -> Stream:
    stream, bus = await mesh.declare(mesh.stream()), await mesh.bus()
    for number in range(count):
        await bus.append(mesh.topic(), Note(text=str(number)), message_id=None)
    return stream


async def test_what_was_acknowledged_does_not_come_again(mesh: Mesh) -> None:
    stream = await _filled(mesh, 3)
    async with _pulling(mesh, stream, "worker") as deliveries:
        for sequence in (1, 2):
            delivery = await soon(anext(deliveries))
            assert (delivery.message.sequence, delivery.delivered) == (sequence, 1)
            await delivery.ack()
    async with _pulling(mesh, stream, "worker") as deliveries:
        assert (await soon(anext(deliveries))).message.sequence == 3


async def test_what_was_given_back_comes_again(mesh: Mesh) -> None:
    stream = await _filled(mesh)
    async with _pulling(mesh, stream, "worker") as deliveries:
        await (await soon(anext(deliveries))).nak()
        again = await soon(anext(deliveries))

        assert (again.message.sequence, again.delivered) == (1, 2)


async def test_what_nobody_settled_goes_to_another(mesh: Mesh) -> None:
    stream = await _filled(mesh)
    async with _pulling(mesh, stream, "worker", ack_wait_seconds=1.0) as first:
        assert (await soon(anext(first))).delivered == 1
    async with _pulling(mesh, stream, "worker", ack_wait_seconds=1.0) as second:
        again = await soon(anext(second))

        assert (again.message.sequence, again.delivered) == (1, 2)


async def test_what_is_being_worked_on_stays(mesh: Mesh) -> None:
    stream = await _filled(mesh)
    async with (
        _pulling(mesh, stream, "worker", ack_wait_seconds=1.0, batch=1) as first,
        _pulling(mesh, stream, "worker", ack_wait_seconds=1.0, batch=1) as second,
    ):
        delivery = await soon(anext(first))
        waiting = {asyncio.ensure_future(anext(deliveries)) for deliveries in (first, second)}
        for _ in range(6):
            done, _ = await asyncio.wait(waiting, timeout=0.3)
            assert not done
            await delivery.working()
        await delivery.nak()

        done, left = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [again.result().delivered for again in done] == [2]
        for other in left:
            other.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def test_what_was_ended_never_comes_again(mesh: Mesh) -> None:
    stream = await _filled(mesh, 2)
    async with _pulling(mesh, stream, "worker", ack_wait_seconds=1.0) as deliveries:
        await (await soon(anext(deliveries))).term("unusable")

        assert (await soon(anext(deliveries))).message.sequence == 2
    async with _pulling(mesh, stream, "worker", ack_wait_seconds=1.0) as deliveries:
        assert (await soon(anext(deliveries))).message.sequence == 2


async def test_two_consumers_of_different_names_each_get_everything(mesh: Mesh) -> None:
    stream = await _filled(mesh)
    for durable in ("one", "two"):
        async with _pulling(mesh, stream, durable) as deliveries:
            assert (await soon(anext(deliveries))).message.sequence == 1


async def test_consumers_of_one_name_share(mesh: Mesh) -> None:
    stream, heard = await _filled(mesh), Heard()

    async def handle(stored: Stored) -> None:
        await heard(stored)

    async with (
        _consuming(await mesh.bus(), stream, handle, at_once=2),
        _consuming(await mesh.bus(), stream, handle, at_once=2),
    ):
        bus = await mesh.bus()
        for number in range(20):
            await bus.append(mesh.topic(), Note(text=str(number)), message_id=None)
        sequences = sorted([(await heard.next()).sequence for _ in range(21)])

    assert sequences == list(range(1, 22))
    assert heard.empty


async def test_a_message_is_acknowledged_when_its_handler_returned(mesh: Mesh) -> None:
    stream, heard, observer = await _filled(mesh, 2), Heard(), RecordingObserver()
    async with _consuming(await mesh.bus(observer=observer), stream, heard):
        assert [(await heard.next()).sequence for _ in range(2)] == [1, 2]
        await (await mesh.bus()).append(mesh.topic(), Note(text="3"), message_id=None)
        assert (await heard.next()).sequence == 3
    async with _consuming(await mesh.bus(), stream, heard):
        await (await mesh.bus()).append(mesh.topic(), Note(text="4"), message_id=None)
        while (await heard.next()).sequence != 4:
            pass
    assert observer.handled == [("consume", mesh.subject(), "ok")] * 3


async def test_a_message_whose_handler_declined_comes_again_and_holds_up_no_other(mesh: Mesh) -> None:
    stream, heard = await _filled(mesh, 3), Heard()
    declined: set[int] = set()

    async def decline_once(stored: Stored) -> None:
        await heard(stored.sequence)
        if stored.sequence == 1 and not declined:
            declined.add(1)
            raise Unavailable("not now")

    async with _consuming(await mesh.bus(), stream, decline_once, at_once=1):
        assert [await heard.next() for _ in range(4)] == [1, 2, 3, 1]


async def test_a_message_that_cannot_be_used_becomes_a_dead_letter_once(mesh: Mesh) -> None:
    await mesh.declare(DEAD_LETTERS)
    stream, heard, observer = await _filled(mesh, 2), Heard(), RecordingObserver()
    bus = await mesh.bus("reader", observer)

    async def refuse_the_first(stored: Stored) -> None:
        if stored.sequence == 1:
            raise Malformed("`text` is an integer: should be a string")
        await heard(stored.sequence)

    async with _consuming(bus, stream, refuse_the_first, at_once=1):
        assert await heard.next() == 2
        await until(lambda: bool(observer.dead))

    stored = await bus.last(DEAD_LETTERS, DEAD_LETTER)
    assert stored is not None
    letter = bus.decode(DEAD_LETTER, stored)
    assert (letter.stream, letter.sequence, letter.subject) == (stream.name, 1, mesh.subject())
    assert (letter.reason_code, letter.found_by) == ("malformed", "reader")
    assert observer.dead == [(mesh.subject(), "malformed")]
    original = await bus.message(stream, 1)
    assert original is not None
    await bus.dead_letter(original, Malformed("again"))
    assert (await bus.last(DEAD_LETTERS, DEAD_LETTER)) == stored


async def test_a_bug_in_a_handler_ends_the_consumption(mesh: Mesh) -> None:
    stream = await _filled(mesh)

    async def break_down(stored: Stored) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await soon((await mesh.bus()).consume(stream, durable="worker", handler=break_down))

    assert caught.group_contains(ZeroDivisionError)
