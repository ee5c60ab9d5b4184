"""What is reported of samples."""

import statistics as standard

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.benchmark_runner.model import Sample
from services.benchmark_runner.prompts import prompt, tokens_per_word, words_for
from services.benchmark_runner.statistics import percentile, result_of, summary, time_per_output_token

SECONDS = st.floats(0, 1e6)


@given(st.lists(SECONDS, min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_or_between_two(values: list[float], share: float):
    ordered = sorted(values)

    assert ordered[0] <= percentile(ordered, share) <= ordered[-1]


@given(st.lists(SECONDS, min_size=2))
def test_percentiles_are_those_of_the_standard_library(values: list[float]):
    cuts = standard.quantiles(values, n=100, method="inclusive")

    found = summary(values)

    assert found is not None
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx([cuts[49], cuts[89], cuts[94], cuts[98]])


@given(st.lists(SECONDS, min_size=1))
def test_a_summary_is_ordered(values: list[float]):
    found = summary(values)

    assert found is not None
    assert found.minimum <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.maximum
    assert found.minimum <= found.mean <= found.maximum


def test_nothing_has_no_summary():
    assert summary([]) is None


def test_the_first_token_is_not_counted_in_the_time_per_token():
    sample = Sample(end_to_end_seconds=1.1, first_token_seconds=0.1, completion_tokens=11)

    assert time_per_output_token(sample) == pytest.approx(0.1)
    assert time_per_output_token(Sample(end_to_end_seconds=1, first_token_seconds=1, completion_tokens=1)) is None


def test_failed_requests_count_as_failed_and_nowhere_else():
    good = Sample(end_to_end_seconds=0.5, first_token_seconds=0.1, prompt_tokens=10, completion_tokens=20)
    bad = Sample(end_to_end_seconds=9.0, error="timed_out")

    result = result_of([good, bad, good], 2.0)

    assert (result.requests_completed, result.requests_failed, result.errors) == (2, 1, {"timed_out": 1})
    assert (result.prompt_tokens, result.completion_tokens) == (20, 40)
    assert result.completion_tokens_per_second == 20
    assert result.total_tokens_per_second == 30
    assert result.end_to_end_seconds is not None
    assert result.end_to_end_seconds.maximum == 0.5


def test_few_samples_are_said_to_be_few():
    sample = Sample(end_to_end_seconds=0.5, completion_tokens=1)

    assert any("too few" in note for note in result_of([sample] * 99, 1.0).notes)
    assert not any("too few" in note for note in result_of([sample] * 100, 1.0).notes)


@given(st.integers(1, 500), st.integers(0, 1000))
def test_a_prompt_has_the_words_that_were_asked_for(words: int, number: int):
    assert len(prompt(words, seed=1, number=number).split()) == words


def test_prompts_differ_from_their_first_words_on():
    starts = {" ".join(prompt(50, seed=1, number=number).split()[:8]) for number in range(500)}

    assert len(starts) == 500


def test_the_length_of_prompts_follows_the_engines_tokenizer():
    assert words_for(100, tokens_per_word(50, 100)) == 50
