"""Rules that every contract keeps."""

import re
from collections import Counter

from libs.common.contracts.catalogue import catalogue

SAID = catalogue()
SUBJECT = re.compile(r"compute(\.[a-z_]+){1,3}\.v[1-9][0-9]*")


def test_every_subject_says_its_version():
    subjects = [topic.subject for topic in SAID.topics] + [call.subject for call in SAID.calls]

    assert [subject for subject in subjects if not SUBJECT.fullmatch(subject)] == []


def test_a_subject_means_one_thing():
    """A call to one node has the node's token at its end: it may begin like a topic."""
    told = Counter(topic.subject for topic in SAID.topics)
    asked = Counter((call.subject, call.per_node) for call in SAID.calls)

    assert [subject for subject, times in told.items() if times > 1] == []
    assert [subject for subject, times in asked.items() if times > 1] == []
    assert [call.subject for call in SAID.calls if not call.per_node and call.subject in told] == []


def test_streams_keep_exactly_the_topics_that_name_them():
    """A stream that covered a call's subject would answer the request before the service does."""
    wanted = sorted((topic.stream, topic.subject) for topic in SAID.topics if topic.stream)
    kept = sorted((stream.name, subject) for stream in SAID.streams for subject in stream.subjects)

    assert kept == wanted


def test_every_contract_says_what_it_is_for():
    summaries = [item.summary for item in (*SAID.topics, *SAID.calls, *SAID.streams, *SAID.buckets)]

    assert [summary for summary in summaries if not summary.endswith((".", "?"))] == []
