"""Writes `supabase/migrations` from the migrations of all services; with --check only compares.

Run it as `python -m tools.supabase_migrations` from the repository's root, or as `make migrations`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from libs.common.archive.migrations import read_schema
from libs.common.archive.migrations_supabase import supabase_files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "supabase" / "migrations"


def files() -> Mapping[str, str]:
    folders = sorted((ROOT / "services").glob("*/migrations"))
    schemas = [read_schema(folder.parent.name, (), folder) for folder in folders]
    return supabase_files(migration for schema in schemas for migration in schema.migrations)


def differences() -> list[str]:
    """Files that are missing, are no longer written, or have another text."""
    wanted = files()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.sql")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = files()
    for path in FOLDER.glob("*.sql"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--check" not in sys.argv:
        write()
    elif different := differences():
        sys.exit(f"not up to date: {', '.join(different)}; run `make migrations`")
