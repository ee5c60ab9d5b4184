"""Server-sent events come out the same however the stream is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.sse import LONGEST_EVENT_BYTES, EventReader

DATA = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), min_size=1)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(events=DATA, places=st.lists(st.integers(0, 10_000)), line_end=st.sampled_from(["\n", "\r\n"]))
def test_events_do_not_depend_on_where_the_stream_is_cut(events: list[str], places: list[int], line_end: str):
    stream = "".join(f"data: {event}{line_end}{line_end}" for event in events).encode()
    reader = EventReader()

    read = [event for piece in cut(stream, places) for event in reader.feed(piece)]

    assert read == events


def test_comments_and_other_fields_are_passed_over():
    assert EventReader().feed(b": ping\n\nevent: message\nid: 3\ndata: a\ndata:b\n\n") == ["a\nb"]


def test_an_event_that_has_not_ended_is_not_told():
    assert EventReader().feed(b"data: half\n") == []


def test_an_event_without_end_is_refused():
    with pytest.raises(Malformed):
        EventReader().feed(b"data: " + b"x" * (LONGEST_EVENT_BYTES + 1))
