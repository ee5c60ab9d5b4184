"""The settings say which archive is meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.archive_sql import SqlArchive
from libs.common.archive.archive_supabase import SupabaseArchive
from libs.common.archive.open_archive import open_archive
from libs.common.errors import WrongSetting
from tests.contract.archive.parts import SCHEMA


def opened(folder: Path, url: str | None = None, supabase_url: str | None = None, key: str | None = None) -> Archive:
    return open_archive(url, supabase_url=supabase_url, service_key=key, data_dir=folder)


async def test_without_settings_it_is_a_file_under_the_data_directory(tmp_path: Path):
    archive = opened(tmp_path / "data")
    await archive.prepare(SCHEMA)
    await archive.close()

    assert (tmp_path / "data" / "archive.db").exists()


async def test_a_file_may_be_named(tmp_path: Path):
    archive = opened(tmp_path, f"sqlite:///{tmp_path}/deep/kept.db")
    await archive.prepare(SCHEMA)
    await archive.close()

    assert (tmp_path / "deep" / "kept.db").exists()


@pytest.mark.parametrize("url", ["postgresql://somebody@127.0.0.1:1/mesh", "postgres://somebody@127.0.0.1:1/mesh"])
def test_postgresql_is_named_by_its_address(tmp_path: Path, url: str):
    assert isinstance(opened(tmp_path, url), SqlArchive)


async def test_supabase_is_named_by_its_project_or_by_the_address(tmp_path: Path):
    assert isinstance(opened(tmp_path, supabase_url="https://p.example", key="service-key"), SupabaseArchive)
    assert isinstance(opened(tmp_path, "supabase+https://p.example", key="service-key"), SupabaseArchive)


def test_supabase_needs_its_key(tmp_path: Path):
    with pytest.raises(WrongSetting, match="SUPABASE_SERVICE_KEY"):
        opened(tmp_path, "supabase+https://p.example")


def test_only_the_archive_that_is_meant_is_imported(tmp_path: Path):
    program = """
import sys
from pathlib import Path
import libs.common.kit.process
from libs.common.archive.open_archive import open_archive
heavy = ("sqlalchemy", "asyncpg", "supabase")
assert not any(name in sys.modules for name in heavy), "nobody asked yet"
open_archive(None, supabase_url=None, service_key=None, data_dir=Path("unused"))
assert [name in sys.modules for name in heavy] == [True, False, False]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_missing_extra_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "supabase", None)
    monkeypatch.delitem(sys.modules, "libs.common.archive.archive_supabase")

    with pytest.raises(WrongSetting, match="install the extra"):
        opened(tmp_path, supabase_url="https://p.example", key="service-key")
