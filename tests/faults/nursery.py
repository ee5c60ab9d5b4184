"""`python -m tests.faults.nursery FILE`: node agents, each started again at once when it died.

FILE is a JSON list of their environments; a folder each, `MESH_DATA_DIR`, takes their output and the list of their
process ids. A Python that has read the agent's code is forked for each life: these are agents like all others, in
processes of their own, that start in a tenth of the time. Ends when told to, or when its own parent does, with all of
them.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from libs.common.kit.runner import main as run
from services.node_agent.wiring import build

PIDS = "pids"
END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def main(file: Path) -> int:
    agents: list[dict[str, str]] = json.loads(file.read_text())
    alive: dict[int, Mapping[str, str]] = {}
    _end_with_parent()
    signal.signal(signal.SIGTERM, _exit)
    gc.freeze()
    try:
        for agent in agents:
            alive[_born(agent)] = agent
        while True:
            pid, _ = os.wait()
            agent = alive.pop(pid)
            alive[_born(agent)] = agent
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)


def _born(environment: Mapping[str, str]) -> int:
    """Returns the process id, which is in the list before the agent does anything."""
    folder = Path(environment["MESH_DATA_DIR"])
    begin, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.read(begin, 1)
        os._exit(_live(environment, folder))
    os.close(begin)
    with (folder / PIDS).open("a") as pids:
        pids.write(f"{pid}\n")
    os.close(told)
    return pid


def _live(environment: Mapping[str, str], folder: Path) -> int:
    _end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    return run({"node_agent": build})


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
