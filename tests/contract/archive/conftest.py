"""The same tests over every archive: what services rely on holds in memory as in each database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_memory import MemoryArchive
from libs.common.archive.archive_sql import sqlite_archive
from tests.contract.archive.parts import SCHEMA

BACK_ENDS = ("memory", "sqlite")


@pytest.fixture(params=BACK_ENDS)
async def bare(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Archive]:
    """An archive that knows no table yet."""
    archive: Archive = MemoryArchive() if request.param == "memory" else sqlite_archive(tmp_path / "archive.db")
    yield archive
    await archive.close()


@pytest.fixture
async def archive(bare: Archive) -> Archive:
    await bare.prepare(SCHEMA)
    return bare
