"""What measured starts say of the next ones."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.planner.calibration import (
    LEAST_FACTOR,
    MOST_FACTOR,
    NONE,
    Kind,
    MeasuredStart,
    Terms,
    corrections_for,
    strongest,
)
from libs.inference.planner.choice import choose
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Asked
from libs.inference.planner.versions import Engine
from tests.unit.inference.planner.machines import node
from tests.unit.inference.planner.published import facts

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
KIND = Kind(architecture="LlamaForCausalLM", quantisation="", version=(0, 33), gpu="L4", together=False)
PREDICTED = Terms(activation=GIB, graphs=GIB, non_torch=GIB)


def _start(kind: Kind = KIND, **measured: float) -> MeasuredStart:
    sizes = {name: int(value * GIB) for name, value in measured.items()}
    return MeasuredStart(kind=kind, predicted=PREDICTED, measured=Terms(**sizes))


def test_without_starts_nothing_is_corrected():
    assert corrections_for(KIND, []) == NONE


def test_one_start_raises_a_term_and_never_lowers_it():
    found = corrections_for(KIND, [_start(activation=1.5, graphs=0.5, non_torch=0.2)])

    assert (found.activation, found.graphs, found.non_torch) == (1.5, 1.0, 0)


def test_three_starts_correct_by_their_median():
    starts = [_start(activation=value, non_torch=value) for value in (0.7, 0.8, 3.0)]
    found = corrections_for(KIND, starts)

    assert found.activation == pytest.approx(0.8)
    assert found.non_torch == pytest.approx(-0.2 * GIB, abs=1)
    assert found.starts == 3


@pytest.mark.parametrize(
    "other",
    [{"architecture": "Other"}, {"quantisation": "fp8"}, {"version": (0, 12)}],
)
def test_another_kind_of_model_says_nothing_of_the_peak(other: dict[str, object]):
    starts = [_start(replace(KIND, **other), activation=2.0)]  # type: ignore[arg-type]

    assert corrections_for(KIND, starts).activation == 1.0


@pytest.mark.parametrize("other", [{"gpu": "H100"}, {"together": True}])
def test_another_gpu_says_nothing_of_what_is_beside(other: dict[str, object]):
    starts = [_start(replace(KIND, **other), non_torch=2.0)]  # type: ignore[arg-type]

    assert corrections_for(KIND, starts).non_torch == 0


def test_an_older_engine_on_the_same_gpu_counts_until_there_is_one_like_this():
    older = _start(replace(KIND, version=(0, 12)), non_torch=3.0)

    assert corrections_for(KIND, [older]).non_torch == 2 * GIB
    assert corrections_for(KIND, [older, _start(non_torch=1.5)]).non_torch == GIB // 2


def test_unlike_gpus_take_what_raises_a_term_most():
    one, other = corrections_for(KIND, [_start(activation=2.0)]), corrections_for(KIND, [_start(non_torch=2.0)])

    found = strongest([one, other])
    assert (found.activation, found.non_torch) == (2.0, GIB)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_no_measurement_corrects_beyond_reason(values: list[float]):
    found = corrections_for(KIND, [_start(activation=value) for value in values])

    assert LEAST_FACTOR <= found.activation <= MOST_FACTOR


def test_a_plan_leaves_room_for_what_was_measured():
    machine = node("a", 24, gpu="L4")
    started = [_start(replace(KIND, gpu="L4"), non_torch=4.0)]
    before, after = (
        choose(facts(LLAMA), Asked(max_model_len=8192), Engine(), [machine], starts=starts).instances[0].start
        for starts in ([], started)
    )

    assert after.stages[0].non_torch - before.stages[0].non_torch == 3 * GIB
    assert after.kv_cache_tokens < before.kv_cache_tokens
