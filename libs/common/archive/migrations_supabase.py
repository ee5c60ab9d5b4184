"""The PostgreSQL migrations as the Supabase CLI wants them, closed to everybody but the service key. Pure."""

import re
from collections.abc import Iterable, Mapping

from libs.common.archive.tables import Migration

TABLE = re.compile(r"^create table (?:if not exists )?(\w+)", re.MULTILINE)
FUNCTION = re.compile(r"^create (?:or replace )?function (\w+\([^)]*\))", re.MULTILINE)


def supabase_files(migrations: Iterable[Migration]) -> Mapping[str, str]:
    """From the name of each file to its text, in the order in which they are applied."""
    ordered = sorted(set(migrations), key=lambda migration: migration.made)
    return {f"{each.made:%Y%m%d%H%M%S}_{each.service}_{each.name}.sql": _closed(each) for each in ordered}


def _closed(migration: Migration) -> str:
    tables, functions = TABLE.findall(migration.postgresql), FUNCTION.findall(migration.postgresql)
    source = f"-- Written by `make migrations` from {migration.number:04}_{migration.name} of {migration.service}.\n"
    added = [
        *(line for table in tables for line in _closed_table(table)),
        *(f"revoke execute on function {function} from public, anon, authenticated;" for function in functions),
        "notify pgrst, 'reload schema';",
    ]
    return source + migration.postgresql + "\n-- Only the service key may use this.\n" + "\n".join(added) + "\n"


def _closed_table(table: str) -> list[str]:
    # No policy lets anybody in; the service key passes row security by.
    return [
        f"alter table {table} enable row level security;",
        f"revoke all on table {table} from anon, authenticated;",
        f"grant select, insert, update, delete on table {table} to service_role;",
    ]
