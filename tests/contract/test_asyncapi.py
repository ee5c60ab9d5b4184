"""The AsyncAPI document is one, and what it says of a message is true of the samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from docs.generate.asyncapi import document
from docs.generate.samples import FOLDER, wire_name
from libs.common.contracts.catalogue import catalogue

SCHEMA = json.loads((Path(__file__).parent / "asyncapi" / "3.0.0.schema.json").read_text(encoding="utf-8"))
DOCUMENT = document()
MESSAGES = catalogue().messages()


def _resolved(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [inner for item in value.values() for inner in _references(item)]
    return [inner for item in value for inner in _references(item)] if isinstance(value, list) else []


def test_the_document_is_valid_asyncapi_3():
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(DOCUMENT)] == []


def test_the_schema_notices_what_is_wrong():
    broken = DOCUMENT | {"operations": {"tell": {"action": "shout"}}}

    assert not Draft7Validator(SCHEMA).is_valid(broken)


def test_every_reference_leads_somewhere():
    assert all(isinstance(_resolved(reference), dict) for reference in set(_references(DOCUMENT)))


def test_every_subject_is_a_channel():
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    said = catalogue()

    assert {topic.subject for topic in said.topics} <= addresses
    assert {f"{call.subject}.{{node_token}}" if call.per_node else call.subject for call in said.calls} <= addresses


@pytest.mark.parametrize("sample", sorted(FOLDER.glob("*.json")), ids=lambda sample: sample.name.removesuffix(".json"))
def test_a_sample_fits_the_schema_of_its_message(sample: Path):
    whole = Resource(contents=DOCUMENT, specification=DRAFT7)
    name = DOCUMENT["components"]["messages"][MESSAGES[wire_name(sample)].__name__]["payload"]["$ref"]
    validator = Draft7Validator({"$ref": f"urn:mesh{name}"}, registry=Registry().with_resource("urn:mesh", whole))

    assert [error.message for error in validator.iter_errors(json.loads(sample.read_text(encoding="utf-8")))] == []
