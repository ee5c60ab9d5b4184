"""The program for who has a card, on a driver that is simulated: it follows, and it finds a ledger that does not."""

import re
import sys

import pytest

from tests import real_gpu


def test_each_step_of_a_process_is_told_right_by_the_ledger(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", ["real_gpu", "--simulated"])

    assert real_gpu.main() == 0

    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == [
        *("0 MiB", "1000 MiB", "2000 MiB", "4000 MiB", "1000 MiB", "released", "ended"),
    ]
    assert [line[7] for line in lines[1:]] == ["well", "well", "well", "over claim", "well", "leak", "well"]
    assert {line[-1] for line in lines[1:]} == {"ok"}


def test_a_ledger_that_does_not_follow_is_found(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", ["real_gpu", "--simulated"])
    monkeypatch.setattr(real_gpu, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(real_gpu.SimulatedGrower, "take", lambda _, mib: mib)

    assert real_gpu.main() == 1
    assert re.search(r"4000 MiB.*WRONG", capsys.readouterr().out)
