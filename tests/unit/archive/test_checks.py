"""Rows on their way into the archive: what is checked once, and what JSON becomes there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.archive.checks import checked_row
from libs.common.errors import Malformed
from tests.contract.archive.parts import STEPS, THINGS, thing

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text("abc") | st.integers(0, 9), inner),
)


@given(value=JSON)
def test_json_is_kept_as_it_would_be_read_back(value: object):
    assert checked_row(THINGS, thing(free=value))["free"] == json.loads(json.dumps(value))


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}, b"bytes"])
def test_what_is_not_json_is_refused(value: object):
    with pytest.raises(Malformed, match=r"things\.free"):
        checked_row(THINGS, thing(free=value))


def test_a_row_is_checked_once_for_its_table():
    row = checked_row(THINGS, thing())

    assert checked_row(THINGS, row) is row
    with pytest.raises(Malformed, match="steps has no column"):
        checked_row(STEPS, {**row, "thing": "a", "step": 1, "text": "", "weight": 0.0})
