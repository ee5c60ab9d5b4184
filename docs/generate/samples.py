"""Records a sample of every message that has none yet: `python -m docs.generate.samples`.

A sample is what a sender of today sends. Once recorded it is never written again: it must stay readable for ever. To
record a message anew before its first release, delete its file and run this.
"""

import json
import sys
from pathlib import Path

from docs.generate.values import example_of
from libs.common.contracts.base import Message
from libs.common.contracts.catalogue import catalogue

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "contract" / "samples"


def wire_name(sample: Path) -> str:
    """What the sample is of. After a `-` in its name it may say what is special about it."""
    return sample.name.removesuffix(".json").split("-")[0]


def recorded(folder: Path = FOLDER) -> set[str]:
    return {wire_name(sample) for sample in folder.glob("*.json")}


def record_missing(folder: Path = FOLDER) -> list[Path]:
    """Returns the files it made."""
    known = recorded(folder)
    missing = {name: message for name, message in catalogue().messages().items() if name not in known}
    return [_record(folder / f"{name}.json", message) for name, message in missing.items()]


def _record(path: Path, message: type[Message]) -> Path:
    with path.open("x", encoding="utf-8") as file:  # never over one that is there
        file.write(json.dumps(example_of(message), indent=2, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    made = record_missing()
    sys.stdout.write("".join(f"recorded {path.name}\n" for path in made) or "every message has a sample\n")
