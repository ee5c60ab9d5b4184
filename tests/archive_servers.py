"""Real archives that can be taken away and brought back. Fixtures; `supabase_schema` is the test's own."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_sql import postgresql_archive, sqlite_archive
from libs.common.archive.archive_supabase import SupabaseArchive
from tests.postgres_process import PostgresProcess, needed_postgres_programs, postgres_process
from tests.postgrest_process import needed_postgrest_program, supabase_process


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
def supabase(postgres: PostgresProcess, supabase_schema: str) -> Iterator[Server]:
    program = needed_postgrest_program()
    with supabase_process(program, postgres, "supabase", supabase_schema) as running:
        yield Server(SupabaseArchive(running.url, running.service_key), postgres.stop, postgres.start)


@pytest.fixture(params=["sqlite", "postgresql", "supabase"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    found: Server = request.getfixturevalue(request.param)
    yield found
    await found.archive.close()
