"""What a service declares of its tables is what its migrations make, in every dialect."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from libs.common.archive.migrate_sqlite import migrate
from libs.common.archive.migrations import read_schema
from libs.common.archive.tables import Column, Kind, Schema
from libs.common.errors import Conflict, Unavailable
from services.node_registry import tables as node_registry
from services.work_marshaling import tables as work_marshaling
from tests.contract.archive.parts import SCHEMA
from tests.postgres_process import PostgresProcess
from tests.unit.house_rules import ROOT
from tools.supabase_migrations import differences

SCHEMAS = [
    SCHEMA,
    *(
        read_schema(name, tables, ROOT / "services" / name / "migrations")
        for name, tables in (("node_registry", node_registry.TABLES), ("work_marshaling", work_marshaling.TABLES))
    ),
]
SQLITE_KINDS = {
    Kind.TEXT: "TEXT",
    Kind.INTEGER: "BIGINT",
    Kind.REAL: "DOUBLE",
    Kind.BOOLEAN: "BOOLEAN",
    Kind.TIMESTAMP: "TEXT",
    Kind.JSON: "TEXT",
}

each_schema = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.service)


def _column(column: Column) -> tuple[str, str, bool]:
    return column.name, SQLITE_KINDS[column.kind], column.nullable


@each_schema
def test_sqlite_has_the_declared_tables(schema: Schema, tmp_path: Path):
    migrate(tmp_path / "archive.db", schema.migrations)
    database = sqlite3.connect(tmp_path / "archive.db")

    for table in schema.tables:
        found = database.execute(f"pragma table_info({table.name})").fetchall()
        assert [(name, kind.upper(), not required) for _, name, kind, required, _, _ in found] == [
            _column(column) for column in table.columns
        ]
        assert tuple(name for _, name, *_, place in sorted(found, key=lambda row: row[5]) if place) == table.key
        listed = database.execute(f"pragma index_list({table.name})").fetchall()
        made = [name for _, name, _, origin, _ in listed if origin == "c"]
        columns = {tuple(row[2] for row in database.execute(f"pragma index_info({name})")) for name in made}
        assert columns == set(table.indexes)
        triggers = database.execute(
            "select name from sqlite_master where type = 'trigger' and tbl_name = ?", [table.name]
        )
        assert len(triggers.fetchall()) == int(table.guarded or table.append_only)
    database.close()


POSTGRESQL_KINDS = {
    Kind.TEXT: "text C",
    Kind.INTEGER: "bigint",
    Kind.REAL: "double precision",
    Kind.BOOLEAN: "boolean",
    Kind.TIMESTAMP: "timestamp with time zone",
    Kind.JSON: "jsonb",
}
COLUMNS = """
select column_name, concat_ws(' ', data_type, collation_name), is_nullable from information_schema.columns
where table_name = '{table}' order by ordinal_position
"""
INDEXES = """
select indisprimary, string_agg(attname, ',' order by place) from pg_index
cross join lateral unnest(indkey) with ordinality as part (number, place)
join pg_attribute on attrelid = indrelid and attnum = number
where indrelid = '{table}'::regclass group by indexrelid, indisprimary
"""
TRIGGERS = "select count(*) from pg_trigger where tgrelid = '{table}'::regclass"
ROW_SECURITY = "select relrowsecurity from pg_class where oid = '{table}'::regclass"


def _answer(postgres: PostgresProcess, database: str, question: str) -> list[list[str]]:
    return [line.split("|") for line in postgres.sql(question, database).splitlines()]


@each_schema
def test_postgresql_has_the_declared_tables(schema: Schema, contract_postgres: PostgresProcess):
    database = f"declared_{schema.service}"
    contract_postgres.sql(f"create database {database}")
    contract_postgres.sql("\n".join(migration.postgresql for migration in schema.migrations), database)

    for table in schema.tables:
        columns, indexes, triggers, row_security = (
            [
                line.split("|")
                for line in contract_postgres.sql(question.format(table=table.name), database).splitlines()
            ]
            for question in (COLUMNS, INDEXES, TRIGGERS, ROW_SECURITY)
        )
        assert columns == [
            [each.name, POSTGRESQL_KINDS[each.kind], "YES" if each.nullable else "NO"] for each in table.columns
        ]
        assert {tuple(names.split(",")) for primary, names in indexes if primary == "f"} == set(table.indexes)
        assert [names for primary, names in indexes if primary == "t"] == [",".join(table.key)]
        assert triggers == [[str(int(table.guarded or table.append_only))]]
        assert row_security == [["t"]]


def test_the_shipped_supabase_migrations_are_up_to_date():
    assert differences() == [], "run: make migrations"


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(tmp_path: Path):
    migrate(tmp_path / "archive.db", SCHEMA.migrations)
    changed = [replace(each, sqlite=each.sqlite + "-- more\n") for each in SCHEMA.migrations]

    with pytest.raises(Conflict, match="0001 of archive was changed"):
        migrate(tmp_path / "archive.db", changed)


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path):
    bad = replace(SCHEMA.migrations[0], service="bad", sqlite="create table half (a text);\ncreate nonsense;\n")

    with pytest.raises(Unavailable, match="nonsense"):
        migrate(tmp_path / "archive.db", [bad])

    with closing(sqlite3.connect(tmp_path / "archive.db")) as database:
        assert database.execute("select name from sqlite_master where type = 'table'").fetchall() == []


@each_schema
def test_every_table_belongs_to_its_service(schema: Schema):
    assert {table.owner for table in schema.tables} == {schema.service}
