"""The database goes away while rows are written, and comes back: all are there, once, the newest."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from libs.common.archive.archive_sql import postgresql_archive
from libs.common.archive.migrations_supabase import supabase_files
from libs.common.archive.tables import Row
from libs.common.archive.writer import ArchiveWriter
from libs.common.clock import Clock, SystemClock
from libs.common.errors import Unavailable
from tests.archive_servers import Server
from tests.contract.archive.parts import SCHEMA, STEPS, THINGS, everything, step, thing
from tests.postgres_process import PostgresProcess

ROWS = 3000
KEYS = 100


class ImpatientClock(SystemClock):
    """Waits a tenth of what it is asked to: outages here are short."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 10)


@pytest.fixture
def supabase_schema() -> str:
    return "\n".join(supabase_files(SCHEMA.migrations).values())


@asynccontextmanager
async def running(writer: ArchiveWriter) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def numbered(number: int) -> Row:
    return thing(f"k{number % KEYS:03}", number, log_seq=number)


async def until(condition: Callable[[], object], clock: Clock) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await clock.sleep(0.01)


async def test_a_writer_catches_up_after_an_outage(server: Server):
    clock = ImpatientClock()
    writer = ArchiveWriter(server.archive, SCHEMA, clock)

    async with running(writer):
        for number in range(ROWS):
            if number == ROWS // 3:
                await until(lambda: writer.committed, clock)
                await asyncio.to_thread(server.take_away)
            await writer.put(THINGS, [numbered(number)], cursor=number)
            await writer.put(STEPS, [step("s", number)])
        await until(lambda: writer.problem() is not None, clock)
        held = writer.committed
        assert held is not None
        assert held < ROWS - 1
        await asyncio.to_thread(server.bring_back)
        await asyncio.wait_for(writer.flushed(), 30)
        await until(lambda: writer.problem() is None, clock)

    assert writer.committed == ROWS - 1
    assert [row["step"] for row in await everything(server.archive, STEPS)] == list(range(ROWS))
    assert {row["number"] for row in await everything(server.archive)} == set(range(ROWS - KEYS, ROWS))


async def test_while_it_is_away_whoever_writes_is_told_and_afterwards_all_is_well(server: Server):
    await server.archive.prepare(SCHEMA)
    await asyncio.to_thread(server.take_away)

    with pytest.raises(Unavailable):
        await server.archive.upsert(THINGS, [thing()])
    assert server.archive.problem() is not None

    await asyncio.to_thread(server.bring_back)
    async with asyncio.timeout(30):
        while server.archive.problem() is not None:
            try:
                await server.archive.upsert(THINGS, [thing()])
            except Unavailable:
                await asyncio.sleep(0.05)
    assert [row["name"] for row in await everything(server.archive)] == ["a"]


async def test_a_database_that_is_not_there_yet_is_waited_for(postgres: PostgresProcess):
    postgres.stop()
    archive, clock = postgresql_archive(postgres.url()), ImpatientClock()
    writer = ArchiveWriter(archive, SCHEMA, clock)
    writer.offer(THINGS, [thing()])

    async with running(writer):
        await until(writer.problem, clock)
        await asyncio.to_thread(postgres.start)
        await asyncio.wait_for(writer.flushed(), 30)

    assert len(await everything(archive)) == 1
    await archive.close()
