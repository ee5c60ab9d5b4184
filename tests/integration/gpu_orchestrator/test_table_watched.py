"""`--table --watch` as a person sees it: in a terminal, wide or narrow, until Ctrl-C."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.gpu_orchestrator.test_ledger_process import IDLE_H100S, started
from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.nvml import machines
from tests.nvml.simulator import Simulator

CTRL_C = b"\x03"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
CURSOR_SHOWN, CURSOR_HIDDEN = "\x1b[?25h", "\x1b[?25l"


class Terminal:
    """A program at a pseudo-terminal of its own."""

    def __init__(self, mesh: MeshProcess, columns: int, rows: int = 40) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: text for name, text in mesh.environment.items() if name not in ("COLUMNS", "LINES")}
        self._ours = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.gpu_orchestrator", "--table", "--watch"],
            env=environment | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_at_its_terminal,
        )
        os.close(theirs)
        self.shown = ""

    @property
    def words(self) -> str:
        return ESCAPES.sub("", self.shown)

    def read_until(self, words: str, times: int = 1) -> None:
        until = time.monotonic() + 30
        while self.words.count(words) < times:
            assert time.monotonic() < until, self.words
            assert self.process.poll() is None or self._readable(0), self.words
            if self._readable(0.5):
                self._read()

    def press(self, key: bytes) -> int:
        os.write(self._ours, key)
        until = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < until, self.words
            if self._readable(0.05):
                self._read()
        while self._readable(0):
            if not self._read():
                break
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self._ours], [], [], seconds)[0])

    def _read(self) -> bool:
        try:
            told = os.read(self._ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += told.decode(errors="replace")
        return bool(told)


def _at_its_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Who starts us in the background of a shell hands on that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def watched(mesh: MeshProcess, columns: int) -> Iterator[Terminal]:
    terminal = Terminal(mesh, columns)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def mesh(tmp_path: Path, shared_nats: NatsProcess, simulator: Simulator) -> Iterator[MeshProcess]:
    simulator.show(IDLE_H100S)
    with mesh_process(tmp_path / "data", NATS_URL=shared_nats.url, NODE_ID="watched", **simulator.settings) as mesh:
        yield mesh


@pytest.fixture
def door(mesh: MeshProcess) -> Iterator[httpx.Client]:
    with started(mesh) as door:
        yield door


def test_what_changes_is_seen_within_seconds_and_ctrl_c_ends_it_cleanly(mesh: MeshProcess, door: httpx.Client):
    with watched(mesh, 110) as terminal:
        terminal.read_until("NVIDIA H100 80GB HBM3", times=8)
        assert "12345" not in terminal.words

        door.post("/reserve", json={"required_mb": 12345, "gpu_indices": [3]}).raise_for_status()
        terminal.read_until("12345")

        assert terminal.press(CTRL_C) == 0
        assert "Traceback" not in terminal.words
        assert terminal.shown.rindex(CURSOR_SHOWN) > terminal.shown.rindex(CURSOR_HIDDEN)


@pytest.mark.parametrize("columns", [80, 40])
def test_on_a_narrow_terminal_no_line_is_broken(mesh: MeshProcess, door: httpx.Client, columns: int):
    with watched(mesh, columns) as terminal:
        terminal.read_until("RAM", times=2)
        lines = terminal.words.replace("\r", "\n").splitlines()

    assert max(len(line) for line in lines) <= columns
    assert all(any(re.match(rf"│ {gpu} +│.* well +│$", line) for line in lines) for gpu in range(8))


def test_a_machine_without_a_gpu_shows_its_ram(mesh: MeshProcess, simulator: Simulator):
    simulator.show(machines.Machine(gpus=()))
    with started(mesh), watched(mesh, 110) as terminal:
        terminal.read_until("│ RAM │", times=2)
        assert terminal.press(CTRL_C) == 0
    assert "│ 0 " not in terminal.words


def test_who_watches_is_told_when_the_orchestrator_is_away_and_sees_it_come_back(mesh: MeshProcess, door: httpx.Client):
    with watched(mesh, 110) as terminal:
        terminal.read_until("RAM")
        mesh.kill()
        terminal.read_until("does not answer")
        before = terminal.words.count("RAM")
        with started(mesh):
            terminal.read_until("RAM", times=before + 1)
        assert terminal.press(CTRL_C) == 0


def test_who_asks_where_no_orchestrator_runs_is_told_so(mesh: MeshProcess):
    command = [sys.executable, "-m", "services.gpu_orchestrator", "--table"]
    told = subprocess.run(command, env=mesh.environment, capture_output=True, text=True)

    assert (told.returncode, told.stdout) == (1, "")
    assert "does not answer" in told.stderr
