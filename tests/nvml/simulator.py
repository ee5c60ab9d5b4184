"""Builds the simulated NVML once per test run, on demand."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.nvml.machines import Machine

SOURCE = Path(__file__).with_name("nvml_simulator.c")


@dataclass(frozen=True)
class Simulator:
    """A library in a folder of its own, and the file that describes the machine it shows."""

    folder: Path
    description: Path

    def show(self, machine: Machine) -> None:
        machine.write(self.description)

    @property
    def settings(self) -> dict[str, str]:
        """What a process needs in its environment to see the simulated GPUs."""
        return {"LD_LIBRARY_PATH": str(self.folder), "NVML_SIMULATOR": str(self.description)}

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of such a process."""
        return {**os.environ, **self.settings}


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def build(folder: Path) -> Path:
    """The folder with the library, built anew only when its source changed."""
    home = folder / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = home / "libnvidia-ml.so.1"
    if not library.exists():
        home.mkdir(parents=True, exist_ok=True)
        fresh = home / f"building-{os.getpid()}"
        flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-pthread")
        subprocess.run([compiler() or "gcc", *flags, "-o", str(fresh), str(SOURCE)], check=True)
        fresh.replace(library)
    return home
