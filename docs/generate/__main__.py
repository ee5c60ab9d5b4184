"""`python -m docs.generate` writes the references; with `--check` it only says whether they are up to date."""

import argparse
import sys
from collections.abc import Callable, Mapping
from difflib import unified_diff
from pathlib import Path

from docs.generate.asyncapi import asyncapi
from docs.generate.errors import errors
from docs.generate.forecast_plot import forecast_plot
from docs.generate.metrics import metrics
from docs.generate.planner_accuracy import planner_accuracy
from docs.generate.rest import rest
from docs.generate.settings import settings
from docs.generate.subjects import subjects
from docs.generate.work_states import work_states

ROOT = Path(__file__).resolve().parents[2]
REFERENCES: Mapping[str, Callable[[], str]] = {
    "subjects.md": subjects,
    "asyncapi.json": asyncapi,
    "rest.md": rest,
    "errors.md": errors,
    "metrics.md": metrics,
    "settings.md": settings,
    "work-states.md": work_states,
    "../planner-accuracy.md": planner_accuracy,
    "../memory-forecast.svg": forecast_plot,
}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _texts().items():
        (folder / name).write_text(text, encoding="utf-8")


def differences(folder: Path) -> list[str]:
    """The lines of a diff from what is there to what should be; none when all is up to date."""
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in REFERENCES)
    found = [f"{name} is there, but nothing writes it" for name in strangers]
    for name, text in _texts().items():
        path = folder / name
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        names = (f"{name} as it is", f"{name} as it should be")
        found.extend(unified_diff(there.splitlines(), text.splitlines(), *names, lineterm=""))
    return found


def _texts() -> dict[str, str]:
    return {name: make() for name, make in REFERENCES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when something differs")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "reference", help="where the references are")
    options = parser.parse_args()
    if not options.check:
        write(options.folder)
        return 0
    found = differences(options.folder)
    if found:
        sys.stdout.write("\n".join([*found, "", "The references are out of date: run `make docs` and commit.", ""]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
