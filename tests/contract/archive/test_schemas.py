"""What a service declares of its tables is what its migrations make, in every dialect."""

import sqlite3
from pathlib import Path

import pytest

from libs.common.archive.migrate_sqlite import migrate
from libs.common.archive.migrations import read_schema
from libs.common.archive.tables import Column, Kind, Schema
from services.node_registry import tables as node_registry
from services.work_marshaling import tables as work_marshaling
from tests.contract.archive.parts import SCHEMA
from tests.unit.house_rules import ROOT

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


@each_schema
def test_every_table_belongs_to_its_service(schema: Schema):
    assert {table.owner for table in schema.tables} == {schema.service}
