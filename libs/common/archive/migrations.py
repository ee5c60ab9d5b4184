"""Migrations: plain SQL files under each service, in both dialects, numbered from 1 without a gap."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from libs.common.archive.tables import Migration, Schema, Table
from libs.common.errors import Conflict, WrongSetting

COMMON = "archive"
"""Owns what the migrations of all services stand on; applied before theirs."""

FILE = re.compile(r"(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.postgresql\.sql")
MADE = re.compile(r"-- made (?P<made>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\n")


def read_schema(service: str, tables: Sequence[Table], folder: Path) -> Schema:
    """A service's tables and its migrations in `folder`, after the common ones."""
    common = read_migrations(COMMON, Path(__file__).parent / "migrations")
    return Schema(service=service, tables=tuple(tables), migrations=(*common, *read_migrations(service, folder)))


def read_migrations(service: str, folder: Path) -> tuple[Migration, ...]:
    """Raises `WrongSetting` when a file of the pair is missing, a number is, or the first line does not say when."""
    paths = sorted(path for path in folder.glob("*.postgresql.sql"))
    found = tuple(_read(service, path) for path in paths)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise WrongSetting(f"the migrations in {folder} are not numbered 0001, 0002 …")
    return found


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def outstanding(
    migrations: Sequence[Migration], applied: Mapping[tuple[str, int], str], dialect: str
) -> list[tuple[Migration, str]]:
    """What is still to be applied, with its SQL. Raises `Conflict` when an applied one was changed since."""
    open_ones: list[tuple[Migration, str]] = []
    for migration in migrations:
        text = migration.sqlite if dialect == "sqlite" else migration.postgresql
        known = applied.get((migration.service, migration.number))
        if known is None:
            open_ones.append((migration, text))
        elif known != checksum(text):
            raise Conflict(
                f"migration {migration.number:04} of {migration.service} was changed after it had been applied; "
                "write a new one instead"
            )
    return open_ones


def _read(service: str, path: Path) -> Migration:
    named = FILE.fullmatch(path.name)
    other = path.with_name(path.name.replace(".postgresql.", ".sqlite."))
    text = path.read_text(encoding="utf-8")
    made = MADE.match(text)
    if named is None or made is None or not other.exists():
        raise WrongSetting(f"{path} is no migration: NNNN_name, beginning with its time, in two dialects")
    return Migration(
        service=service,
        number=int(named["number"]),
        name=named["name"],
        made=datetime.fromisoformat(f"{made['made']}+00:00"),
        sqlite=other.read_text(encoding="utf-8"),
        postgresql=text,
    )
