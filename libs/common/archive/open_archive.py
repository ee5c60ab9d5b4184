"""Which archive the settings mean. Only the one that is meant is imported."""

from pathlib import Path

from libs.common.archive.archive import Archive
from libs.common.errors import WrongSetting

SQLITE = "sqlite:///"
POSTGRESQL = ("postgresql://", "postgres://")
SUPABASE = "supabase+"
FILE = "archive.db"


def open_archive(url: str | None, *, supabase_url: str | None, service_key: str | None, data_dir: Path) -> Archive:
    """The archive at `url`, else in Supabase where that is set, else in a file under `data_dir`.

    It connects when it is first used. Raises `WrongSetting`.
    """
    if url is None:
        return _supabase(supabase_url, service_key) if supabase_url else _sqlite(data_dir / FILE)
    if url.startswith(SUPABASE):
        return _supabase(url.removeprefix(SUPABASE), service_key)
    if url.startswith(POSTGRESQL):
        return _postgresql(url)
    return _sqlite(Path(url.removeprefix(SQLITE)))


def _sqlite(file: Path) -> Archive:
    from libs.common.archive.archive_sql import sqlite_archive

    return sqlite_archive(file)


def _postgresql(url: str) -> Archive:
    from libs.common.archive.archive_sql import postgresql_archive

    return postgresql_archive(url)


def _supabase(url: str | None, service_key: str | None) -> Archive:
    if url is None or service_key is None:
        raise WrongSetting("SUPABASE_SERVICE_KEY is not set; the archive in Supabase needs the project's service key.")
    try:
        from libs.common.archive.archive_supabase import SupabaseArchive
    except ModuleNotFoundError as error:
        raise WrongSetting(
            "The archive in Supabase needs a package that is not installed; "
            'install the extra: pip install "compute-mesh[supabase]".'
        ) from error
    return SupabaseArchive(url, service_key)
