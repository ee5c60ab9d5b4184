"""Every result becomes a message that can be written, or an error that can."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.base import MAX_OBJECT_BYTES
from libs.common.contracts.work_marshaling import Assignment, WorkCompleted, WorkFailed
from services.node_agent.outcomes import completed, failed, message_for

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASSIGNMENT = Assignment(
    work_id="w", attempt=1, attempt_token="t", node_id="n", work_type="function", timeout_seconds=1, lease_seconds=1
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sets(st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(ANYTHING)
def test_whatever_a_job_returns_can_be_told(result: Any):
    message = message_for(ASSIGNMENT, completed(result, started_at=NOW, ended_at=NOW))

    message.model_dump_json()
    assert isinstance(message, WorkCompleted) or message.error.code == "bad_result"


@given(st.text(st.characters(), max_size=5000))
def test_whatever_an_error_says_can_be_told(text: str):
    message = message_for(ASSIGNMENT, failed("c", text, retryable=True, started_at=None, ended_at=NOW))

    assert isinstance(message, WorkFailed)
    message.model_dump_json()


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (float("nan"), "bad_result"),
        (2**64, "bad_result"),
        ("\ud800", "bad_result"),
        ({"a": object()}, "bad_result"),
        ("x" * MAX_OBJECT_BYTES, "result_too_large"),
    ],
)
def test_a_result_that_cannot_be_told_is_a_final_error(result: Any, code: str):
    outcome = completed(result, started_at=NOW, ended_at=NOW)

    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == (code, False)


def test_the_largest_result_is_still_told():
    outcome = completed("x" * (MAX_OBJECT_BYTES - 2), started_at=NOW, ended_at=NOW)

    assert outcome.error is None
