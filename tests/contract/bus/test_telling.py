"""Publish and subscribe."""

import asyncio

import pytest

from libs.common.bus.observer import Correlated, correlation_id
from libs.common.errors import TimedOut
from tests.contract.bus.parts import Heard, Mesh, Note, soon, until
from tests.recording import RecordingObserver


async def test_what_is_published_is_heard(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()
    await (await mesh.bus("ear")).subscribe(topic, heard)

    await (await mesh.bus("mouth")).publish(topic, Note(text="hello", number=7))

    assert await heard.next() == Note(text="hello", number=7)


async def test_publishing_to_nobody_is_a_normal_thing(mesh: Mesh) -> None:
    observer = RecordingObserver()
    topic = mesh.topic()

    await (await mesh.bus(observer=observer)).publish(topic, Note(text="hello"))

    assert observer.sendings == [("publish", topic.subject, "ok")]


async def test_without_a_group_every_subscriber_hears_every_message(mesh: Mesh) -> None:
    topic, ears = mesh.topic(), [Heard(), Heard()]
    for ear in ears:
        await (await mesh.bus()).subscribe(topic, ear)

    bus = await mesh.bus()
    for text in ("a", "b"):
        await bus.publish(topic, Note(text=text))

    for ear in ears:
        assert sorted(await ear.texts(2)) == ["a", "b"]


async def test_a_group_shares_the_messages(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()
    for _ in range(3):
        await (await mesh.bus()).subscribe(topic, heard, group="workers")
    whole = Heard()
    await (await mesh.bus()).subscribe(topic, whole)

    bus = await mesh.bus()
    sent = [f"{number}" for number in range(30)]
    for text in sent:
        await bus.publish(topic, Note(text=text))

    assert sorted(await heard.texts(30)) == sorted(sent)
    assert sorted(await whole.texts(30)) == sorted(sent)
    assert heard.empty


async def test_one_at_once_keeps_the_order(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()

    async def slower_at_first(note: Note) -> None:
        for _ in range(20 - note.number):
            await asyncio.sleep(0)
        await heard(note)

    await (await mesh.bus()).subscribe(topic, slower_at_first, at_once=1)
    bus = await mesh.bus()
    for number in range(20):
        await bus.publish(topic, Note(text=str(number), number=number))

    assert await heard.texts(20) == [str(number) for number in range(20)]


async def test_no_more_handlers_run_at_once_than_allowed(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()
    release = asyncio.Event()
    running = most = 0

    async def busy(note: Note) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await heard(note)
        await release.wait()
        running -= 1

    await (await mesh.bus()).subscribe(topic, busy, at_once=3)
    bus = await mesh.bus()
    for number in range(9):
        await bus.publish(topic, Note(text=str(number)))
    await heard.texts(3)
    release.set()
    await heard.texts(6)

    assert most == 3


async def test_a_handler_that_fails_does_not_end_the_subscription(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()
    observer = RecordingObserver()

    async def clumsy(note: Note) -> None:
        await heard(note)
        if note.number == 0:
            raise ZeroDivisionError("a bug")

    await (await mesh.bus(observer=observer)).subscribe(topic, clumsy, at_once=1)
    bus = await mesh.bus()
    await bus.publish(topic, Note(text="breaks"))
    await bus.publish(topic, Note(text="works", number=1))

    assert await heard.texts(2) == ["breaks", "works"]
    await until(lambda: len(observer.handled) == 2)
    assert observer.handled == [("subscribe", topic.subject, "internal"), ("subscribe", topic.subject, "ok")]


async def test_what_a_handler_sends_carries_the_correlation_id_of_what_it_handles(mesh: Mesh) -> None:
    first, second = mesh.topic("first"), mesh.topic("second")
    seen: asyncio.Queue[str | None] = asyncio.Queue()
    middle = await mesh.bus("middle")

    async def pass_on(note: Note) -> None:
        await middle.publish(second, note)

    async def look(note: Note) -> None:
        seen.put_nowait(correlation_id())

    await (await mesh.bus("end")).subscribe(second, look)
    await middle.subscribe(first, pass_on)
    bus = await mesh.bus("start")
    with Correlated("one-request"):
        await bus.publish(first, Note(text="x"))

    assert await soon(seen.get()) == "one-request"


async def test_a_message_without_a_correlation_id_gets_one(mesh: Mesh) -> None:
    topic = mesh.topic()
    seen: asyncio.Queue[str | None] = asyncio.Queue()

    async def look(note: Note) -> None:
        seen.put_nowait(correlation_id())

    await (await mesh.bus()).subscribe(topic, look)
    await (await mesh.bus()).publish(topic, Note(text="x"))

    assert await soon(seen.get())
    assert correlation_id() is None


async def test_a_strangers_correlation_id_is_not_trusted_blindly(mesh: Mesh) -> None:
    topic = mesh.topic()
    seen: asyncio.Queue[str | None] = asyncio.Queue()

    async def look(note: Note) -> None:
        seen.put_nowait(correlation_id())

    await (await mesh.bus()).subscribe(topic, look)
    await (await mesh.transport()).publish(topic.subject, b'{"text":"x"}', {"Correlation-Id": "x" * 500})

    given = await soon(seen.get())
    assert given is not None
    assert len(given) == 32


async def test_the_observers_headers_travel(mesh: Mesh) -> None:
    topic, heard = mesh.topic(), Heard()
    await (await mesh.transport()).subscribe(topic.subject, heard)

    observer = RecordingObserver(outgoing={"traceparent": "00-trace"})
    await (await mesh.bus(observer=observer)).publish(topic, Note(text="x"))

    assert (await heard.next()).headers["traceparent"] == "00-trace"


async def test_draining_finishes_what_is_in_hand(mesh: Mesh) -> None:
    topic, heard, finished = mesh.topic(), Heard(), Heard()
    release = asyncio.Event()

    async def busy(note: Note) -> None:
        await heard(note)
        await release.wait()
        await finished(note)

    bus = await mesh.bus()
    await bus.subscribe(topic, busy, at_once=1)
    other = await mesh.bus()
    for text in ("running", "delivered"):
        await other.publish(topic, Note(text=text))
    await heard.next()
    draining = asyncio.create_task(bus.drain(4.0))
    await asyncio.sleep(0)
    release.set()
    await soon(draining)

    assert await finished.texts(2) == ["running", "delivered"]


async def test_draining_cuts_short_what_does_not_end_in_time(mesh: Mesh) -> None:
    topic, heard, ended = mesh.topic(), Heard(), Heard()

    async def endless(note: Note) -> None:
        await heard(note)
        try:
            await asyncio.Event().wait()
        finally:
            await ended(note)

    bus = await mesh.bus()
    await bus.subscribe(topic, endless)
    await (await mesh.bus()).publish(topic, Note(text="x"))
    await heard.next()

    await soon(bus.drain(0.05))

    assert await ended.texts(1) == ["x"]


async def test_after_draining_nothing_is_heard(mesh: Mesh) -> None:
    topic, heard, other_ear = mesh.topic(), Heard(), Heard()
    bus = await mesh.bus()
    await bus.subscribe(topic, heard)
    await (await mesh.bus()).subscribe(topic, other_ear)
    await bus.drain(4.0)

    await (await mesh.bus()).publish(topic, Note(text="x"))

    await other_ear.next()
    assert heard.empty


async def test_after_catching_up_all_that_was_told_before_is_handled(mesh: Mesh) -> None:
    topic, handled = mesh.topic(), list[int]()

    async def slow(note: Note) -> None:
        await asyncio.sleep(0.001)
        handled.append(note.number)

    ear, mouth = await mesh.bus("ear"), await mesh.bus("mouth")
    await ear.subscribe(topic, slow, at_once=1)
    for number in range(50):
        await mouth.publish(topic, Note(text="", number=number))
    await mouth.catch_up()

    await ear.catch_up(topic)

    assert handled == list(range(50))


async def test_catching_up_takes_no_longer_than_it_may(mesh: Mesh) -> None:
    topic, taken = mesh.topic(), asyncio.Event()

    async def stuck(_: Note) -> None:
        taken.set()
        await asyncio.Event().wait()

    bus = await mesh.bus()
    await bus.subscribe(topic, stuck, at_once=1)
    await bus.publish(topic, Note(text=""))
    await asyncio.wait_for(taken.wait(), 5)

    with pytest.raises(TimedOut):
        await bus.catch_up(topic, timeout=0.05)


async def test_handlers_begin_in_the_order_in_which_they_were_told_also_while_some_wait_for_a_place(mesh: Mesh) -> None:
    topic, begun = mesh.topic(), list[int]()

    async def hear(note: Note) -> None:
        begun.append(note.number)
        await asyncio.sleep(0.001 * (note.number % 3))

    await (await mesh.bus("ear")).subscribe(topic, hear, at_once=2)
    mouth = await mesh.bus("mouth")
    for number in range(200):
        await mouth.publish(topic, Note(text="", number=number))
        if number % 20 == 0:
            await until(lambda number=number: len(begun) > number)  # then there is a place again

    await until(lambda: len(begun) == 200)
    assert begun == list(range(200))
