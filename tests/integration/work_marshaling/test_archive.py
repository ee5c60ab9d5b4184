"""Finished work in each real archive, also one that goes away while there is much to write."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from libs.common.contracts.streams import WORK_DONE
from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.errors import NotFound, Unavailable
from services.work_marshaling.model import Cancel, Filter
from tests.archive_servers import Server
from tests.unit.work_marshaling.house import RULES, House, Instance, submit, view_of
from tools.supabase_migrations import FOLDER

FORGETFUL = replace(RULES, ended_most=0, remembered_most=0, upkeep_seconds=1.0)
ITEMS = 60


@pytest.fixture
def supabase_schema() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.sql")))


async def until(house: House, condition: Callable[[], Awaitable[object]]) -> None:
    """The queue's time passes, and the database gets some of ours."""
    async with asyncio.timeout(60):
        while not await condition():
            await house.pass_time(0.5, step=0.5)
            await asyncio.sleep(0.01)


async def _end(instance: Instance, count: int, team: str) -> list[str]:
    ids = [await submit(instance, labels={"team": team}, payload={"text": "\0 café"}) for _ in range(count)]
    for work_id in ids:
        instance.leading.present.term.happen(work_id, Cancel(reason="enough"))
    return ids


async def test_finished_work_outlives_the_memory_and_an_outage(server: Server):
    house = House()
    house.archive = server.archive
    async with house.marshaling(FORGETFUL) as instance:

        async def archived() -> bool:
            state = await instance.bus.stream_state(WORK_DONE)
            return state.messages == 0 and not instance.leading.present.term.memory.items

        first = await _end(instance, ITEMS, "before")
        await until(house, archived)
        await asyncio.to_thread(server.take_away)
        second = await _end(instance, ITEMS, "during")

        async def noticed() -> bool:
            waits = instance.archiving.problem() is not None and instance.archiving.waiting_rows >= ITEMS
            return waits and not instance.leading.present.term.memory.items

        await until(house, noticed)
        with pytest.raises(Unavailable):
            await view_of(instance, second[0])
        await asyncio.to_thread(server.bring_back)
        await until(house, archived)

        told = await view_of(instance, second[0])
        assert (told.status, told.labels, told.archived) == (WorkStatus.CANCELLED, {"team": "during"}, True)
        assert sorted(await _listed(instance)) == sorted(first + second)
        house.clock.advance(timedelta(days=31).total_seconds())
        await instance.archiving.retain()
        with pytest.raises(NotFound):
            await view_of(instance, first[0])


async def _listed(instance: Instance) -> list[str]:
    """Page by page."""
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await instance.asking.find(Filter(), limit=50, cursor=cursor)
        seen += [item.work_id for item in page.items]
        cursor = page.cursor
        if cursor is None:
            return seen
