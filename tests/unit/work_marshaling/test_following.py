"""Following one item: what its readers are told, and that nobody waits for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from libs.common.contracts.work_events import EventsLost, ItemProgress
from libs.common.contracts.work_marshaling import WorkView
from libs.common.errors import NotFound, Unavailable
from services.work_marshaling import following
from services.work_marshaling.following import Event
from tests.unit.work_marshaling.house import House, Instance, Node, submit


@asynccontextmanager
async def queue() -> AsyncIterator[tuple[House, Instance, Node]]:
    house = House()
    async with house.marshaling() as instance:
        node = Node(house, instance.bus, "n1")
        await node.open()
        yield house, instance, node


async def _start(instance: Instance, work_id: str, last: str | None = None) -> tuple[AsyncIterator[Event], Event]:
    events = await instance.following.follow(work_id, last)
    return events, await anext(events)


def _told(event: Event) -> str:
    if isinstance(event.message, WorkView):
        return event.message.status.value
    if isinstance(event.message, ItemProgress):
        return event.message.text or ""
    return f"{event.message}"


async def test_an_item_is_followed_to_its_end():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, first = await _start(instance, work_id)
        await node.progress(given, "he")
        await node.progress(given, "llo")
        await node.complete(given, "hello")

        told = [first, *[event async for event in events]]
        assert [_told(event) for event in told] == ["assigned", "he", "running", "llo", "completed"]
        assert told[-1].last
        assert isinstance(told[-1].message, WorkView)
        assert told[-1].message.result == "hello"


async def test_a_state_is_told_only_when_it_is_on_disk():
    async with queue() as (house, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, _ = await _start(instance, work_id)
        coming = asyncio.ensure_future(anext(events))
        await house.settle()
        house.server.stop()
        instance.leading.present.term.hear_progress(work_id, given.attempt_token or "")
        await house.settle()
        assert not coming.done()

        house.server.start()
        assert _told(await asyncio.wait_for(coming, 5)) == "running"


async def test_a_reader_that_comes_back_goes_on_where_it_was():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, first = await _start(instance, work_id)
        async with aclosing(events):  # type: ignore[type-var]  # a generator
            pass
        await node.progress(given, "missed")
        events, next_one = await _start(instance, work_id, first.id)

        assert _told(next_one) == "missed"


async def test_a_reader_that_comes_back_too_late_begins_with_the_state():
    async with queue() as (house, instance, _):
        work_id = await submit(instance, requirements={"node_ids": ["absent"]})
        events, first = await _start(instance, work_id)
        async with aclosing(events):  # type: ignore[type-var]  # a generator
            pass
        await house.pass_time(40, step=1.0)
        _, again = await _start(instance, work_id, first.id)

        assert (_told(again), again.id != first.id) == ("pending", True)


async def test_a_slow_reader_is_told_how_much_it_missed_and_nobody_waits_for_it():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, _ = await _start(instance, work_id)
        for number in range(300):
            await node.progress(given, f"{number}")
        lost = await anext(events)

        assert isinstance(lost.message, EventsLost)
        assert lost.message.events == 301 - 256
        assert _told(await anext(events)) == "44"


async def test_much_text_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "MOST_CHARACTERS", 5_000)
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, _ = await _start(instance, work_id)
        for _ in range(10):
            await node.progress(given, "x" * 1_000)

        assert isinstance((await anext(events)).message, EventsLost)
        assert [len(_told(await anext(events))) for _ in range(3)] == [1_000] * 3


async def test_an_item_that_ended_is_told_once():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        await node.complete(await node.takes())
        told = [event async for event in await instance.following.follow(work_id, None)]

        assert [_told(event) for event in told] == ["completed"]


async def test_a_reader_that_comes_back_after_the_end_is_not_kept():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        given = await node.takes()
        events, first = await _start(instance, work_id)
        await node.complete(given, "hello")
        told = [first, *[event async for event in events]]

        async with asyncio.timeout(5):
            assert [event async for event in await instance.following.follow(work_id, told[-1].id)] == []
            again = [event async for event in await instance.following.follow(work_id, told[0].id)]
            assert [_told(event) for event in again] == ["completed"]


async def test_a_reader_that_saw_only_an_end_and_comes_back_sees_it_once_more():
    async with queue() as (_, instance, node):
        work_id = await submit(instance)
        await node.complete(await node.takes(), "hello")
        _, only = await _start(instance, work_id)

        async with asyncio.timeout(5):
            again = [event async for event in await instance.following.follow(work_id, only.id)]
        assert [(_told(event), event.last) for event in again] == [("completed", True)]


async def test_an_item_that_is_not_there_cannot_be_followed():
    async with queue() as (_, instance, _):
        with pytest.raises(NotFound):
            await instance.following.follow("nothing", None)


async def test_so_many_may_follow_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "MOST_READERS", 1)
    async with queue() as (_, instance, _):
        work_id = await submit(instance, requirements={"node_ids": ["absent"]})
        events, _ = await _start(instance, work_id)
        with pytest.raises(Unavailable):
            await instance.following.follow(work_id, None)
        async with aclosing(events):  # type: ignore[type-var]  # a generator
            pass

        assert await instance.following.follow(work_id, None)


async def test_the_end_of_a_leadership_ends_its_streams():
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance, requirements={"node_ids": ["absent"]})
        events, _ = await _start(instance, work_id)
        rest = asyncio.ensure_future(_all(events))
        await house.settle()

    assert await asyncio.wait_for(rest, 5) == []


async def _all(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]
