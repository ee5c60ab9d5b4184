"""What was once sent can be read for ever."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_jsonable_python

from docs.generate.samples import FOLDER, record_missing, recorded, wire_name
from libs.common.bus.codec import decode
from libs.common.contracts.base import Message
from libs.common.contracts.catalogue import catalogue

MESSAGES = catalogue().messages()
SAMPLES = sorted(FOLDER.glob("*.json"))

a_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name.removesuffix(".json"))


def _read(sample: Path) -> Message:
    return decode(MESSAGES[wire_name(sample)], sample.read_bytes())


def _from_the_future(value: Any) -> Any:
    """As JSON, every message within with one field more."""
    if isinstance(value, Message):
        known = {name: _from_the_future(getattr(value, name)) for name in value.model_fields_set}
        return known | {"a_field_from_the_future": {"is": ["ignored"]}}
    return [_from_the_future(item) for item in value] if isinstance(value, tuple) else to_jsonable_python(value)


def test_every_message_has_a_sample():
    missing = sorted(set(MESSAGES) - recorded())

    assert missing == [], "record them with: python -m docs.generate.samples"


def test_every_sample_is_of_a_message_that_is_in_use():
    assert sorted(recorded() - set(MESSAGES)) == []


@a_sample
def test_a_sample_is_read_without_losing_a_field(sample: Path):
    """A field that was renamed, retyped or removed would be ignored or refused: that is a new version, not a change."""
    sent = json.loads(sample.read_text(encoding="utf-8"))

    read = _read(sample).model_dump(mode="json", exclude_unset=True)

    assert read == sent


@a_sample
def test_fields_from_the_future_are_ignored(sample: Path):
    today = _read(sample)
    tomorrow = json.dumps(_from_the_future(today))

    assert "a_field_from_the_future" in tomorrow
    assert decode(type(today), tomorrow.encode()) == today


def test_a_sample_is_recorded_once_and_never_again(tmp_path: Path):
    first = record_missing(tmp_path)
    changed = first[0]
    changed.write_text("{}", encoding="utf-8")

    again = record_missing(tmp_path)

    assert len(first) == len(MESSAGES)
    assert again == []
    assert changed.read_text(encoding="utf-8") == "{}"


def test_recording_twice_gives_the_same_bytes(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    one, two = record_missing(tmp_path / "one"), record_missing(tmp_path / "two")

    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
