"""What programs that stand for others have in common: how each of their starts is to go, and what each was told."""

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def fake_program(folder: Path, name: str, module: str, starts: tuple[str, ...]) -> Path:
    """A program of this name that runs a module with the folder and its own arguments. Returns its path.

    `starts` has one word for each start to come, `ok` after the last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(starts))
    program = folder / name
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} {folder} "$@"\n')
    program.chmod(0o755)
    return program


def next_start(folder: Path, name: str) -> str:
    """How this start is to go, whoever else starts at the same time."""
    starts = folder / f"{name}.json"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        how, *later = [*json.loads(starts.read_text()), "ok"]
        starts.write_text(json.dumps(later))
    return str(how)


def keep(folder: Path, name: str, told: dict[str, Any]) -> None:
    """For `kept`."""
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


def kept(folder: Path, name: str) -> list[dict[str, Any]]:
    """What every start told of itself, in order."""
    try:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
