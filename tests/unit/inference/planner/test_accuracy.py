"""What the planner says of starts that users published. The document of all rows is `docs/planner-accuracy.md`."""

from collections.abc import Callable
from statistics import median

import pytest

from docs.generate.measured_starts import MeasuredStart, measured_starts
from docs.generate.planner_terms import TERMS, Pair, is_refusal, refused, tokens_of_bytes, verdict, weights
from libs.inference.planner.memory import Verdict


def _errors(term: Callable[[MeasuredStart], Pair | None]) -> list[float]:
    return sorted(abs(pair.error) for row in measured_starts() if (pair := term(row)) is not None)


def test_weights_are_within_two_percent():
    errors = _errors(weights)

    assert len(errors) >= 24
    assert median(errors) <= 0.02


def test_one_start_alone_is_off_by_more_than_five_percent():
    pairs = [pair for row in measured_starts() if (pair := weights(row)) is not None]

    assert {pair.row.id for pair in pairs if abs(pair.error) > 0.05} == {"V102"}


def test_the_tokens_of_a_card_are_within_five_percent():
    assert median(_errors(TERMS["tokens, given the card"])) <= 0.05


def test_the_same_bytes_of_cache_hold_the_same_tokens():
    errors = _errors(tokens_of_bytes)

    assert len(errors) >= 9
    assert max(errors) <= 0.002


def test_the_cache_that_remains_is_within_ten_percent():
    assert median(_errors(TERMS["cache available (GiB)"])) <= 0.1


def test_no_start_that_failed_is_said_to_fit():
    failed = [row for row in measured_starts() if row.cells["outcome"] == "fail"]
    decided = {row.id: found for row in failed if (found := verdict(row)) is not None}

    assert len(decided) >= 9
    assert Verdict.FITS not in decided.values()


@pytest.mark.parametrize("row", [row for row in measured_starts() if is_refusal(row)], ids=lambda row: row.id)
def test_a_division_that_was_refused_is_refused_where_the_model_is_known(row: MeasuredStart):
    assert refused(row) != []


def test_no_division_that_started_is_refused():
    started = [row for row in measured_starts() if row.cells["outcome"] == "ok"]

    assert [row.id for row in started if refused(row)] == []
