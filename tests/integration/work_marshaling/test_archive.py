"""Finished work in each real archive, also one that goes away while there is much to write."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_sql import postgresql_archive, sqlite_archive
from libs.common.archive.archive_supabase import SupabaseArchive
from libs.common.contracts.streams import WORK_DONE
from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.errors import NotFound, Unavailable
from services.work_marshaling.model import Cancel, Filter
from tests.postgres_process import PostgresProcess, needed_postgres_programs, postgres_process
from tests.postgrest_process import needed_postgrest_program, supabase_process
from tests.unit.work_marshaling.house import RULES, House, Instance, submit, view_of
from tools.supabase_migrations import FOLDER

FORGETFUL = replace(RULES, ended_most=0, remembered_most=0, upkeep_seconds=1.0)
ITEMS = 60


@dataclass
class Server:
    """A database that can be taken away and brought back."""

    archive: Archive
    take_away: Callable[[], object]
    bring_back: Callable[[], object]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Server]:
    """Away is: somebody else holds the file's lock for longer than we wait."""
    file = tmp_path / "archive.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        yield Server(
            sqlite_archive(file, lock_seconds=0.1),
            lambda: other.execute("begin exclusive"),
            lambda: other.execute("rollback"),
        )


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    with postgres_process(needed_postgres_programs()) as server:
        yield server


@pytest.fixture
def postgresql(postgres: PostgresProcess) -> Server:
    return Server(postgresql_archive(postgres.url()), postgres.stop, postgres.start)


@pytest.fixture
def supabase(postgres: PostgresProcess) -> Iterator[Server]:
    program = needed_postgrest_program()
    shipped = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.sql")))
    with supabase_process(program, postgres, "supabase", shipped) as running:
        yield Server(SupabaseArchive(running.url, running.service_key), postgres.stop, postgres.start)


@pytest.fixture(params=["sqlite", "postgresql", "supabase"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    found: Server = request.getfixturevalue(request.param)
    yield found
    await found.archive.close()


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
