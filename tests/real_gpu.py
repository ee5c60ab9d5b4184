"""Whether the ledger follows a process that grows and shrinks on a GPU: for who has a card.

`python -m tests.real_gpu [--python /of/pytorch/bin/python] [--gpu 0] [--most-mb 4000]` starts a nats-server and a GPU
orchestrator of its own, and a PyTorch process that takes and gives back memory. It reserves less than that process
will take, commits it, and prints beside each other what PyTorch, `nvidia-smi` and the ledger say: while it stays within
its claim, goes beyond it, outlives its reservation, and ends. Exits 1 when a line disagrees, 2 when there is nothing
to try it on. `--simulated` tries the program itself on a simulated driver, where no card is needed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import nats_process
from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator, build

MIB = 2**20
CONTEXT_MB = 1500
"""What CUDA may keep for a process beside what PyTorch tells."""
ROUNDING_MB = 8
PATIENCE_SECONDS = 20.0
COLUMNS = ("step", "pytorch", "nvidia-smi", "ledger", "claim", "held", "free", "told as", "")
GROWER = """
import sys, torch
blocks = []
torch.cuda.init()
for line in sys.stdin:
    wanted = int(line)
    blocks.clear()
    torch.cuda.empty_cache()
    if wanted:
        blocks.append(torch.ones(wanted * 2**20, dtype=torch.uint8, device="cuda"))
    torch.cuda.synchronize()
    print(torch.cuda.memory_reserved() // 2**20, flush=True)
"""


class NothingToTry(Exception):
    """There is no card, or no PyTorch that can use it."""


class Grower(Protocol):
    """A process that uses so much of a GPU as it is told."""

    pid: int

    def take(self, mib: int) -> int:
        """Returns how much it says that it has now."""
        ...

    def smi_mb(self) -> int | None:
        """What another tool says that it uses."""
        ...

    def end(self) -> None: ...


class TorchGrower:
    def __init__(self, python: str, gpu: str) -> None:
        self._process = subprocess.Popen(
            [python, "-c", GROWER],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def take(self, mib: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{mib}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        told = self._process.stdout.readline()
        if not told:
            raise NothingToTry("PyTorch did not come up on that GPU; its words are above. See --python")
        return int(told)

    def smi_mb(self) -> int | None:
        command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        try:
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        except (OSError, subprocess.SubprocessError):
            return None
        found = [line.split(",")[1].strip() for line in lines if line.split(",")[0].strip() == str(self.pid)]
        amounts = [int(amount) for amount in found if amount.isdecimal()]
        return sum(amounts) if amounts else None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class SimulatedGrower:
    """A process that does nothing, and a driver that says it used memory, with a context of its own beside it."""

    CONTEXT = 400

    def __init__(self, simulator: Simulator, machine: Machine) -> None:
        self._simulator = simulator
        self._machine = machine
        self._process = subprocess.Popen(["sleep", "600"])
        self.pid = self._process.pid
        self._used = 0

    def take(self, mib: int) -> int:
        self._used = mib + self.CONTEXT
        self._show(((self.pid, self._used, "c"),))
        return mib

    def smi_mb(self) -> int | None:
        return self._used

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._show(())

    def _show(self, processes: tuple[tuple[int, int, str], ...]) -> None:
        total, _, driver = self._machine.gpus[0].memory
        used = sum(mb for _, mb, _ in processes)
        self._simulator.show(self._machine.changed(0, memory=(total, used, driver), processes=processes))


@dataclass(frozen=True, kw_only=True)
class Line:
    step: str
    pytorch_mb: int | None
    smi_mb: int | None
    ledger: dict[str, Any]
    use: dict[str, Any] | None
    leak: dict[str, Any] | None
    right: bool

    def cells(self) -> tuple[str, ...]:
        measured = self.use["measured_mb"] if self.use else self.leak["used_mb"] if self.leak else None
        claim = self.use["claim_mb"] if self.use else None
        told = "over claim" if self.use and self.use["over_claim"] else "leak" if self.leak else "well"
        amounts = (self.pytorch_mb, self.smi_mb, measured, claim, self.ledger["held_mb"], self.ledger["free_mb"])
        shown = ("-" if amount is None else str(amount) for amount in amounts)
        return (self.step, *shown, told, "ok" if self.right else "WRONG")


class Following:
    """Plays the steps and looks at each until the ledger says what it should, or too long."""

    def __init__(self, door: httpx.Client, gpu: int, grower: Grower, most_mb: int) -> None:
        self._door = door
        self._gpu = gpu
        self._grower = grower
        self._most_mb = most_mb
        self._name = ""
        self._claim_mb = 0

    def lines(self) -> Iterator[Line]:
        before = self._state()["ledger"]["free_mb"]
        self._grower.take(0)
        self._claim_mb = CONTEXT_MB + self._most_mb // 2
        self._name = self._committed()
        for part in (0, 4, 2, 1, 4):
            yield self._within(f"{self._most_mb // part if part else 0} MiB", self._most_mb // part if part else 0)
        self._door.delete(f"/reservations/{self._name}").raise_for_status()
        yield self._seen("released", None, lambda entry: bool(entry["leaks"]))
        self._grower.end()
        yield self._seen("ended", None, lambda entry: abs(entry["free_mb"] - before) <= ROUNDING_MB)

    def _within(self, step: str, mib: int) -> Line:
        told = self._grower.take(mib)

        def fits(entry: dict[str, Any]) -> bool:
            use = self._use(entry)
            if use is None or use["measured_mb"] is None:
                return False
            measured = use["measured_mb"]
            held = max(measured, self._claim_mb)
            beside = -ROUNDING_MB <= measured - told <= CONTEXT_MB
            return beside and use["over_claim"] == (measured > self._claim_mb) and bool(entry["held_mb"] == held)

        return self._seen(step, told, fits)

    def _seen(self, step: str, told: int | None, fits: Any) -> Line:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (right := fits(entry := self._state()["ledger"])) and time.monotonic() < deadline:
            time.sleep(0.2)
        smi = None if step == "ended" else self._grower.smi_mb()
        leak = next((each for each in entry["leaks"] if each["pid"] == self._grower.pid), None)
        return Line(
            step=step, pytorch_mb=told, smi_mb=smi, ledger=entry, use=self._use(entry), leak=leak, right=bool(right)
        )

    def _use(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        return next((use for use in entry["uses"] if use["reservation_id"] == self._name), None)

    def _state(self) -> dict[str, Any]:
        gpus = self._door.get("/states").raise_for_status().json()["gpus"]
        found = [state for state in gpus if state["gpu"]["index"] == self._gpu]
        if not found or found[0]["ledger"] is None or found[0]["ledger"]["free_mb"] is None:
            raise NothingToTry(f"The orchestrator sees no GPU {self._gpu} of which memory is free here.")
        return dict(found[0])

    def _committed(self) -> str:
        wish = {"required_mb": self._claim_mb, "gpu_indices": [self._gpu], "purpose": "does the ledger follow?"}
        held = self._door.post("/reserve", json=wish).raise_for_status().json()
        path = f"/reservations/{held['reservation_id']}"
        self._door.post(f"{path}/commit", json={"pid": self._grower.pid}).raise_for_status()
        return str(held["reservation_id"])


@contextlib.contextmanager
def _orchestrator(folder: Path, **settings: str) -> Iterator[MeshProcess]:
    with nats_process() as server, mesh_process(folder / "data", NATS_URL=server.url, **settings) as mesh:
        mesh.start(("-m", "services.gpu_orchestrator"))
        mesh.wait_ready(["gpu_orchestrator"])
        yield mesh


def follow(asked: argparse.Namespace) -> bool:
    """Prints a line for each step. Raises `NothingToTry`."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, settings = Path(name), {"GPU_LEAK_GRACE_SECONDS": "1"}
        simulator, machine = None, None
        if asked.simulated:
            machine = Machine(gpus=(replace(machines.H100_X8.gpus[0], memory=(81559, 0, 551), links=(), near=()),))
            simulator = Simulator(build(folder), folder / "machine.txt")
            simulator.show(machine)
            settings |= simulator.settings
        mesh = stack.enter_context(_orchestrator(folder, **settings))
        door = stack.enter_context(httpx.Client(base_url=f"{mesh.url('gpu_orchestrator')}/api/v1/gpu", timeout=20))
        grower: Grower = (
            SimulatedGrower(simulator, machine) if simulator and machine else TorchGrower(asked.python, str(asked.gpu))
        )
        stack.callback(grower.end)
        return _print(Following(door, asked.gpu, grower, asked.most_mb).lines())


def _print(lines: Iterator[Line]) -> bool:
    right = True
    _row(COLUMNS)
    for line in lines:
        _row(line.cells())
        right = right and line.right
    return right


def _row(cells: Sequence[str]) -> None:
    sys.stdout.write("| " + " | ".join(f"{cell:>10}" for cell in cells) + " |\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.real_gpu", description="Does the ledger follow a process?")
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--gpu", type=int, default=0, help="its index")
    parser.add_argument("--most-mb", type=int, default=4000, help="how much the process takes at most")
    parser.add_argument("--simulated", action="store_true", help="without a card: try this program itself")
    try:
        return 0 if follow(parser.parse_args()) else 1
    except NothingToTry as nothing:
        sys.stderr.write(f"{nothing}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
