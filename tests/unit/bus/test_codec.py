"""Bytes to messages and back: whatever comes, it is read or refused with a reason, and nothing else happens."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.common.bus.codec import ERROR_HEADER, decode, encode, encode_list, encode_with, error_reply, read_reply
from libs.common.contracts.base import Json, Message
from libs.common.contracts.catalogue import catalogue
from libs.common.contracts.node_registry import NodeQuery
from libs.common.contracts.work_marshaling import WorkItem
from libs.common.errors import Malformed, MeshError, NotFound
from tests.contract.bus.hostile import HOSTILE_PAYLOADS

MESSAGES = sorted(catalogue().messages().items())

every_message = pytest.mark.parametrize("kind", [kind for _, kind in MESSAGES], ids=[name for name, _ in MESSAGES])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


class Free(Message):
    value: Json = None


@every_message
@settings(max_examples=25, deadline=None)
@given(payload=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(kind: type[Message], payload: bytes) -> None:
    _read_or_refused(kind, payload)


@every_message
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_in_the_fields_of_a_message_is_read_or_refused(kind: type[Message], data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(sorted(kind.model_fields)), json_values, max_size=6))

    _read_or_refused(kind, json.dumps(fields).encode())


def _read_or_refused(kind: type[Message], payload: bytes) -> None:
    refusal: Malformed | None = None
    try:
        message = decode(kind, payload)
    except Malformed as error:
        refusal = error
    if refusal is None:
        assert decode(kind, encode(message)) == message
        return
    body, headers = error_reply(refusal)
    assert len(refusal.message) < 700
    assert json.loads(body)["error"]["code"] == "malformed"
    assert all(character.isprintable() and character.isascii() for character in headers[ERROR_HEADER])


@settings(max_examples=300, deadline=None)
@given(value=json_values)
@example(value=math.nan)
@example(value={"a": [{"b": -math.inf}]})
@example(value=2**63)
@example(value="\ud800")
@example(value={"\udfff": 1})
def test_what_the_free_part_of_a_message_takes_any_reader_can_read(value: Any) -> None:
    """Also when it came from Python's own JSON reader, which lets more through."""
    try:
        message = Free(value=value)
    except ValueError:
        return
    strict = json.loads(encode(message).decode("utf-8"), parse_constant=_refuse)

    assert strict["value"] == value


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    "value",
    [math.nan, [1, {"x": math.inf}], 2**63, -(2**63), "\ud800", {"\udfff": 1}, {"a": {"b": float("-inf")}}],
    ids=ascii,
)
def test_the_free_part_of_a_message_refuses_what_is_not_json_everywhere(value: Any) -> None:
    with pytest.raises(ValueError, match="value"):
        Free(value=value)


@pytest.mark.parametrize("payload", HOSTILE_PAYLOADS.values(), ids=HOSTILE_PAYLOADS.keys())
def test_the_free_part_of_a_message_refuses_it_also_as_it_came(payload: bytes) -> None:
    """Pydantic's own JSON reader lets NaN and infinities through."""
    with pytest.raises(Malformed, match=r"payload|not JSON"):
        decode(WorkItem, b'{"work_type": "chat", "payload": ' + payload + b"}")


def test_nesting_is_allowed_up_to_its_limit() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    assert Free(value=nested(31)).value == nested(31)
    for levels in (32, 150, 100_000):
        with pytest.raises(ValueError, match=r"levels|recursion"):
            Free(value=nested(levels))


def test_every_field_is_written_also_without_a_value() -> None:
    written = json.loads(encode(WorkItem(work_type="chat")))

    assert set(written) == set(WorkItem.model_fields)
    assert written["deadline"] is None


@pytest.mark.parametrize("message", [Free(value={"value": None}), WorkItem(work_type="chat", submitter='"payload":')])
def test_a_message_with_parts_that_were_written_before_reads_as_the_whole(message: Message) -> None:
    name = next(iter(type(message).model_fields))
    parts = {name: encode_list([b"1", b"2"])}

    told = encode_with(message, **parts)

    assert json.loads(told.json) == json.loads(encode(message)) | {name: [1, 2]}


def test_a_refusal_names_three_fields_and_counts_the_rest() -> None:
    bad = {"work_type": 7, "priority": 12, "payload": [], "labels": None, "timeout_seconds": "soon"}

    with pytest.raises(Malformed) as caught:
        decode(WorkItem, json.dumps(bad).encode())

    assert caught.value.message == (
        "WorkItem cannot be read: `work_type` is an integer: Input should be a valid string; "
        "`priority` is an integer: Input should be less than or equal to 9; "
        "`payload` is an array: Input should be an object; and 2 more"
    )
    assert caught.value.details["faults"] == 5
    assert [field["field"] for field in caught.value.details["fields"]] == ["work_type", "priority", "payload"]  # type: ignore[attr-defined]


def test_a_refusal_says_what_is_missing_without_repeating_what_was_sent() -> None:
    with pytest.raises(Malformed) as caught:
        decode(WorkItem, b'{"password": "1234"}')

    assert caught.value.message == "WorkItem cannot be read: `work_type` is missing: Field required"
    assert "1234" not in str(caught.value.details)


def test_a_quarter_of_a_million_faults_do_not_hold_up_the_rest() -> None:
    payload = b'{"node_ids": [' + b",".join([b"1"] * 250_000) + b"]}"
    started = time.process_time()

    with pytest.raises(Malformed, match=r"250000 values|at most 1000"):
        decode(NodeQuery, payload)

    assert time.process_time() - started < 1.0


def test_text_that_cannot_be_written_is_refused() -> None:
    broken = WorkItem.model_construct(work_type="chat", payload={"x": "\ud800"})

    with pytest.raises(Malformed, match="WorkItem cannot be written"):
        encode(broken)


@settings(max_examples=200, deadline=None)
@given(
    message=st.text(st.characters(codec=None)), details=st.dictionaries(st.text(max_size=10), json_values, max_size=4)
)
def test_any_error_can_be_answered_and_read_again(message: str, details: dict[str, Any]) -> None:
    body, headers = error_reply(NotFound(message, **details))

    with pytest.raises(NotFound):
        read_reply(WorkItem, body, headers)
    assert "\r" not in headers[ERROR_HEADER]
    assert "\n" not in headers[ERROR_HEADER]


def test_an_error_with_a_mountain_of_details_is_answered_without_them() -> None:
    body, headers = error_reply(NotFound("gone", mountain="x" * 1_000_000))

    with pytest.raises(NotFound) as caught:
        read_reply(WorkItem, body, headers)
    assert caught.value.details == {}
    assert len(body) < 1000


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=100), headers=st.sampled_from([{}, {ERROR_HEADER: "x"}]))
def test_any_reply_is_an_answer_or_an_error(payload: bytes, headers: dict[str, str]) -> None:
    try:
        read_reply(WorkItem, payload, headers)
    except MeshError:
        return
