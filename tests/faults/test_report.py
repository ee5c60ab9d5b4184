"""The table is of one whole run."""

from typing import Any

import pytest

from tests.faults.report import NotOneRun, table
from tests.faults.rows import ROWS


def run(*left_out: str) -> dict[str, Any]:
    rows = [
        {
            "fault": row.name,
            "done": "something",
            "least_running": 100,
            "submitted": 2,
            "accepted": 1,
            "ended_once": 1,
            "lost": 0,
            "doubled": 0,
            "seed": 1,
            "ran_again": 0,
        }
        for row in ROWS
        if row.name not in left_out
    ]
    told = {"began": "2030-01-01 12:00 UTC", "seconds": 1500, "at_once": 2, "processors": 2, "load_before": 0.1}
    return told | {"rows": rows}


def test_the_table_has_a_line_for_every_fault_and_says_which_run_it_is_of():
    text = table(run())

    assert all(f"| {row.name} | something | 100 |" in text for row in ROWS)
    assert "began at 2030-01-01 12:00 UTC and took 25 minutes" in text


@pytest.mark.parametrize(
    "told",
    [
        run("leader killed"),
        run() | {"rows": [*run()["rows"], run()["rows"][0]]},
        {"rows": run()["rows"]},
    ],
)
def test_no_table_is_made_of_less_or_more_than_one_whole_run(told: dict[str, Any]):
    with pytest.raises(NotOneRun):
        table(told)
