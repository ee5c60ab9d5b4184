"""What the node agent decides."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.engine_facts import Device
from services.node_agent.machine import (
    LEFT_OUT,
    LONGEST_PAUSE_SECONDS,
    MOST_TEXT_CHARACTERS,
    MOST_UNTOLD_CHARACTERS,
    choose_device,
    failures_in_a_row,
    pause_before_restart,
    renewal_seconds,
    seems_hung,
    text_to_keep,
    text_to_tell,
)

CPU = Device(name="CPU", description="AMD EPYC", is_gpu=False)
CUDA = Device(name="CUDA0", description="NVIDIA H200", is_gpu=True)


def test_an_engine_that_keeps_dying_is_started_ever_more_slowly():
    pauses = [pause_before_restart(count) for count in range(1, 12)]

    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert all(later >= earlier for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


@given(st.integers(-5, 10**6))
def test_the_pause_is_always_within_its_bounds(count: int):
    assert 0.5 <= pause_before_restart(count) <= LONGEST_PAUSE_SECONDS


def test_a_steady_minute_forgives_earlier_failures():
    assert failures_in_a_row(7, 59.9) == 8
    assert failures_in_a_row(7, 60.0) == 1


def test_an_engine_that_computes_is_busy_and_not_hung():
    assert seems_hung(31, 0.0, patience_seconds=30)
    assert not seems_hung(31, 5.0, patience_seconds=30)
    assert not seems_hung(29, 0.0, patience_seconds=30)
    assert not seems_hung(31, None, patience_seconds=30)


def test_a_gpu_is_used_where_the_engine_can():
    assert choose_device("auto", [CUDA, CPU], ["NVIDIA H200"]) == ("cuda", "the engine can use NVIDIA H200")


def test_a_gpu_that_the_engine_cannot_use_is_named_with_what_is_missing():
    device, reason = choose_device("auto", [CPU], ["NVIDIA H200"])

    assert device == "cpu"
    assert "NVIDIA H200" in reason
    assert "CPU build" in reason


def test_without_a_gpu_the_reason_says_so():
    assert choose_device("auto", [CPU], []) == ("cpu", "this machine has no GPU")


def test_the_owner_may_ask_for_the_cpu():
    assert choose_device("cpu", [CUDA, CPU], ["NVIDIA H200"]) == ("cpu", "ENGINE_DEVICE=cpu asks for it")


@given(st.lists(st.floats(0.01, 3600), min_size=1))
def test_two_renewals_may_get_lost_before_any_lease_expires(leases: list[float]):
    assert renewal_seconds(leases) <= max(0.1, min(leases) / 3)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_partial_output_is_lost_or_reordered(produced: str):
    told, rest = [], produced * 50
    while rest:
        text, rest = text_to_tell(rest)
        assert len(text) <= MOST_TEXT_CHARACTERS
        told.append(text)

    assert "".join(told) == produced * 50


@given(st.lists(st.text("ab", max_size=20_000), max_size=10))
def test_of_output_that_comes_faster_than_it_is_told_the_end_waits_with_a_word_about_the_rest(pieces: list[str]):
    waiting = ""
    for piece in pieces:
        waiting = text_to_keep(waiting + piece)
        assert len(waiting) <= MOST_UNTOLD_CHARACTERS + len(LEFT_OUT)

    produced = "".join(pieces)
    assert waiting == produced or waiting == LEFT_OUT + produced[-MOST_UNTOLD_CHARACTERS:]
