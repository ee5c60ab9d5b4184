"""What is noted outlives the process, whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.common.errors import Unavailable
from libs.common.journal.notes import Notes

WRITER = """
import itertools, sys
from pathlib import Path
from libs.common.journal.notes import Notes

notes = Notes(Path(sys.argv[1]))
notes.open()
for number in itertools.count():
    notes.write([b"line %d" % number])
    print(number, flush=True)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Notes]:
    notes = Notes(tmp_path / "notes")
    assert notes.open() == []
    yield notes
    notes.close()


def left(path: Path) -> list[bytes]:
    again = Notes(path)
    lines = list(again.open())
    again.close()
    return lines


def test_what_was_noted_is_there_after_a_kill(tmp_path: Path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "notes")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()

    assert left(tmp_path / "notes")[:50] == [b"line %d" % number for number in told]


def test_the_file_is_empty_when_all_is_settled(notes: Notes, tmp_path: Path):
    notes.write([b"one", b"two"])
    notes.write([b"three"])
    notes.settle(2)
    assert left(tmp_path / "notes") == [b"one", b"two", b"three"]

    notes.settle(1)
    assert left(tmp_path / "notes") == []
    notes.write([b"four"])
    assert left(tmp_path / "notes") == [b"four"]


def test_a_line_that_was_not_written_to_its_end_is_none(tmp_path: Path):
    (tmp_path / "notes").write_bytes(b"one\ntw")

    assert left(tmp_path / "notes") == [b"one"]


def test_of_what_has_no_room_nothing_is_there(notes: Notes, tmp_path: Path):
    notes.write([b"one"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(Unavailable, match="No space left"):
            notes.write([b"a longer line"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
        with pytest.raises(Unavailable, match="too large"):
            notes.write([b"any"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    notes.write([b"two"])
    assert left(tmp_path / "notes") == [b"one", b"two"]
