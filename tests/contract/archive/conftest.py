"""The same tests over every archive: what services rely on holds in memory as in each database."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.archive_sql import postgresql_archive, sqlite_archive
from libs.common.archive.archive_supabase import SupabaseArchive
from libs.common.archive.migrations_supabase import supabase_files
from tests.contract.archive.parts import SCHEMA
from tests.postgres_process import PostgresProcess, needed_postgres_programs, postgres_process
from tests.postgrest_process import Supabase, needed_postgrest_program, supabase_process
from tools.supabase_migrations import FOLDER

BACK_ENDS = ("memory", "sqlite", "postgresql", "supabase")


@pytest.fixture(scope="session")
def contract_postgres() -> Iterator[PostgresProcess]:
    with postgres_process(needed_postgres_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def contract_supabase(contract_postgres: PostgresProcess) -> Iterator[Supabase]:
    program = needed_postgrest_program()
    shipped = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.sql"))}
    every = dict(sorted((shipped | supabase_files(SCHEMA.migrations)).items(), key=lambda each: each[0]))
    with supabase_process(program, contract_postgres, "supabase", "\n".join(every.values())) as supabase:
        yield supabase


Emptied = Callable[[], Awaitable[Archive]]


@pytest.fixture
def emptied_sqlite(tmp_path: Path) -> Emptied:
    async def make() -> Archive:
        for file in tmp_path.glob("archive.db*"):
            file.unlink()
        archive = sqlite_archive(tmp_path / "archive.db")
        await archive.prepare(SCHEMA)
        return archive

    return make


@pytest.fixture
def emptied_postgresql(contract_postgres: PostgresProcess) -> Emptied:
    contract_postgres.sql("drop schema public cascade; create schema public")

    async def make() -> Archive:
        archive = postgresql_archive(contract_postgres.url())
        await archive.prepare(SCHEMA)
        contract_postgres.sql("truncate things, steps")
        return archive

    return make


@pytest.fixture
def emptied_supabase(contract_supabase: Supabase) -> Emptied:
    async def make() -> Archive:
        contract_supabase.sql("truncate things, steps")
        return SupabaseArchive(contract_supabase.url, contract_supabase.service_key)

    return make


@pytest.fixture(params=BACK_ENDS)
async def bare(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Archive]:
    """An archive that was not prepared. In Supabase its tables are there, for it cannot make them."""
    archive: Archive
    if request.param == "memory":
        archive = MemoryArchive()
    elif request.param == "sqlite":
        archive = sqlite_archive(tmp_path / "archive.db")
    elif request.param == "postgresql":
        postgres: PostgresProcess = request.getfixturevalue("contract_postgres")
        postgres.sql("drop schema public cascade; create schema public")
        archive = postgresql_archive(postgres.url())
    else:
        supabase: Supabase = request.getfixturevalue("contract_supabase")
        supabase.sql("truncate things, steps, nodes, node_events")
        archive = SupabaseArchive(supabase.url, supabase.service_key)
    yield archive
    await archive.close()


@pytest.fixture
async def archive(bare: Archive) -> Archive:
    await bare.prepare(SCHEMA)
    return bare
