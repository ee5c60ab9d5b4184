"""Whatever a stranger writes into a field has a limit that the contract tells."""

from collections.abc import Iterator
from typing import Any

import pytest

from libs.common.contracts.base import Message
from libs.common.contracts.work_events import RunAgain
from libs.common.contracts.work_marshaling import (
    CancelWork,
    SubmitMany,
    WorkBatch,
    WorkCompleted,
    WorkFailed,
    WorkItem,
    WorkLookup,
    WorkProgress,
)

BOUNDED = ("maxLength", "pattern", "enum", "const", "format")
FREE = {"payload", "result", "items[]", "labels"}
"""Any JSON: bounded by its size in bytes, its depth and its numbers. The labels a node must have: by their size."""


def _unbounded(name: str, schema: dict[str, Any]) -> Iterator[str]:
    for choices in ("anyOf", "oneOf"):
        for choice in schema.get(choices, ()):
            yield from _unbounded(name, choice)
    kind, free = schema.get("type"), name.rpartition(".")[2] in FREE
    if kind == "string" and not any(limit in schema for limit in BOUNDED):
        yield name
    if kind == "array":
        if "maxItems" not in schema:
            yield name
        yield from _unbounded(f"{name}[]", schema.get("items", {}))
    if kind == "object" and "properties" not in schema and "maxProperties" not in schema and not free:
        yield name
    for field, inner in schema.get("properties", {}).items():
        yield from _unbounded(f"{name}.{field}", inner)


@pytest.mark.parametrize(
    "kind", [WorkItem, WorkBatch, SubmitMany, RunAgain, WorkLookup, CancelWork, WorkProgress, WorkCompleted, WorkFailed]
)
def test_every_field_that_a_stranger_fills_has_a_limit(kind: type[Message]):
    schema = kind.model_json_schema()
    parts = {kind.__name__: schema} | schema.get("$defs", {})

    assert [found for name, part in parts.items() for found in _unbounded(name, part)] == []


def test_a_field_without_a_limit_is_found():
    class Loose(Message):
        text: str
        many: tuple[int, ...]
        named: dict[str, int]

    assert list(_unbounded("Loose", Loose.model_json_schema())) == ["Loose.text", "Loose.many", "Loose.named"]
