"""Payloads become requests, answers become results; what cannot, says which field is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.openai import (
    DEFAULT_MAX_TOKENS,
    StreamedAnswer,
    Usage,
    WorkKind,
    models_in,
    read_answer,
    request_for,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        "prompt",
        "messages",
        "input",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "n",
        "stream",
        "seed",
    ]
)
KINDS = st.sampled_from(["inference", "chat", "embedding"])


def test_a_prompt_is_completed():
    request = request_for("inference", {"prompt": "Hello", "max_tokens": 5, "seed": 3}, "m")

    assert request.path == "/v1/completions"
    assert request.body == {"prompt": "Hello", "max_tokens": 5, "seed": 3, "model": "m", "stream": False}


def test_messages_are_a_chat_also_for_work_of_type_inference():
    messages = [{"role": "user", "content": "Hello"}]

    for kind in ("inference", "chat"):
        request = request_for(kind, {"messages": messages}, "m")  # type: ignore[arg-type]
        assert request.path == "/v1/chat/completions"
        assert request.body["messages"] == messages
        assert request.body["max_tokens"] == DEFAULT_MAX_TOKENS


def test_a_streamed_request_asks_for_usage():
    request = request_for("inference", {"prompt": "x", "stream": True}, "m")

    assert request.stream
    assert request.body["stream_options"] == {"include_usage": True}


def test_the_engines_model_is_asked_for_whatever_the_payload_says():
    assert request_for("inference", {"prompt": "x", "model": "other"}, "m").body["model"] == "m"


def test_one_text_or_several_are_embedded():
    assert request_for("embedding", {"input": "x"}, "m").body["input"] == ["x"]
    assert request_for("embedding", {"input": ["x", "y"]}, "m").body["input"] == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "payload", "field"),
    [
        ("inference", {}, "prompt"),
        ("inference", {"prompt": 3}, "prompt"),
        ("inference", {"prompt": ""}, "prompt"),
        ("inference", {"prompt": "x", "messages": [{"role": "user"}]}, "prompt"),
        ("chat", {"prompt": "x"}, "prompt"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": ["x"]}, "messages"),
        ("chat", {"messages": [{"role": "king", "content": "x"}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages"),
        ("inference", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("inference", {"prompt": "x", "max_tokens": True}, "max_tokens"),
        ("inference", {"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ("inference", {"prompt": "x", "temperature": "hot"}, "temperature"),
        ("inference", {"prompt": "x", "top_p": 2}, "top_p"),
        ("inference", {"prompt": "x", "n": 2}, "n"),
        ("inference", {"prompt": "x", "stream": 1}, "stream"),
        ("embedding", {"input": []}, "input"),
        ("embedding", {"input": ["x", ""]}, "input"),
    ],
)
def test_a_wrong_field_is_named(kind: WorkKind, payload: dict[str, Any], field: str):
    with pytest.raises(Malformed) as refused:
        request_for(kind, payload, "m")

    assert refused.value.details["field"] == field
    assert f"`{field}" in refused.value.message or "`messages`" in refused.value.message


@given(kind=KINDS, payload=st.dictionaries(FIELDS, JSON))
def test_any_payload_is_mapped_or_refused(kind: WorkKind, payload: dict[str, Any]):
    refused: Malformed | None = None
    try:
        request = request_for(kind, payload, "m")
    except Malformed as error:
        refused = error
    else:
        assert request.body["model"] == "m"
        json.dumps(request.body)

    assert refused is None or refused.details["field"] in {*payload, "prompt", "messages", "input"}


@given(answer=JSON)
def test_any_answer_is_read_or_refused(answer: object):
    try:
        read_answer(answer)
    except Malformed:
        return


@given(pieces=st.lists(st.text(max_size=5)))
def test_a_streamed_answer_is_the_sum_of_its_pieces(pieces: list[str]):
    streamed = StreamedAnswer()

    told = [streamed.take(json.dumps({"choices": [{"delta": {"content": piece}}]})) for piece in pieces]
    streamed.take(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}], "model": "m"}))
    streamed.take(json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}))
    streamed.take("[DONE]")

    assert streamed.answer().text == "".join(pieces) == "".join(told)
    assert streamed.answer().usage == Usage(prompt_tokens=3, completion_tokens=4)
    assert streamed.answer().finish_reason == "stop"


@pytest.mark.parametrize("event", ["{", "[1]", '{"error": {"message": "out of memory"}}'])
def test_an_event_that_is_no_answer_is_refused(event: str):
    with pytest.raises(Malformed):
        StreamedAnswer().take(event)


def test_a_stream_that_breaks_off_is_no_answer():
    streamed = StreamedAnswer()
    streamed.take(json.dumps({"choices": [{"text": "half"}]}))

    with pytest.raises(Malformed, match="broke off"):
        streamed.answer()


def test_a_whole_answer_is_read():
    answer = read_answer(
        {
            "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
            "model": "m",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            "timings": {"predicted_ms": 3.0},
        }
    )

    assert (answer.text, answer.model, answer.finish_reason) == ("hi", "m", "stop")
    assert answer.timings == {"predicted_ms": 3.0}


def test_the_models_that_an_engine_lists_are_read_in_its_order():
    assert models_in({"data": [{"id": "b"}, {"id": "a", "owned_by": "x"}, {"id": 7}, "c"]}) == ("b", "a")


@pytest.mark.parametrize("found", [None, [], {}, {"data": []}, {"data": "x"}, {"data": [{"id": ""}]}])
def test_a_list_without_models_is_refused(found: object):
    with pytest.raises(Malformed):
        models_in(found)
