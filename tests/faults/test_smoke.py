"""A short version of some faults; `make faults` plays all of them."""

import random
from pathlib import Path

import pytest

from tests.faults.play import play
from tests.faults.rows import ROWS

SHORT = {"marshaling killed": 0.2, "all killed at once": 0.04}


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in SHORT], ids=lambda row: row.name)
async def test_what_was_accepted_ends_once(row, tmp_path: Path):
    found = await play(row, random.Random(row.name).randrange(1000), scale=SHORT[row.name], keep=tmp_path)

    assert (found["lost"], found["doubled"], found["problems"]) == (0, 0, [])
    assert found["ended_once"] == found["accepted"] > 100
