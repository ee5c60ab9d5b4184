"""What is generated is up to date, always the same, and names nothing of the machine it was made on."""

import getpass
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.__main__ import ROOT, differences, write


def _generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "docs.generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    write(folder)
    return folder


def test_the_references_are_up_to_date():
    assert differences(ROOT / "docs" / "reference") == [], "run: make docs"


def test_another_process_writes_the_same_bytes(references: Path):
    checked = _generate("--check", "--folder", str(references))

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_difference_is_shown_and_fails_the_check(references: Path, tmp_path: Path):
    for file in references.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "errors.md").write_text("# Errors\n", encoding="utf-8")
    (tmp_path / "old.md").write_text("", encoding="utf-8")

    checked = _generate("--check", "--folder", str(tmp_path))

    assert checked.returncode == 1
    assert "+| `not_found` | 404 |" in checked.stdout
    assert "old.md is there, but nothing writes it" in checked.stdout
    assert "run `make docs`" in checked.stdout


def test_nothing_of_this_machine_is_in_the_references(references: Path):
    written = "\n".join(file.read_text(encoding="utf-8") for file in references.iterdir())

    assert str(ROOT) not in written
    assert str(Path.home()) not in written
    assert getpass.getuser() not in written.split()
