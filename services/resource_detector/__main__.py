import argparse
import asyncio
import shutil
import subprocess
import sys
from typing import Any

from libs.common.contracts.node_registry import Inventory, TierVerdict
from libs.common.errors import WrongSetting
from libs.common.kit.runner import main
from services.resource_detector.wiring import BROKEN, COMMAND, build, compare, look_once, rows


def _look() -> tuple[Inventory, TierVerdict]:
    """Ends the program with a sentence when a setting is wrong."""
    try:
        return asyncio.run(look_once())
    except WrongSetting as error:
        sys.stderr.write(error.message + "\n")
        sys.exit(2)


def _once(*, as_json: bool) -> int:
    from rich.console import Console

    inventory, verdict = _look()
    console = Console()
    if as_json:
        console.print_json(data=inventory.model_dump(mode="json") | {"tier": verdict.model_dump(mode="json")})
        return 0
    console.print(_page(rows(inventory, verdict)))
    return 0


def _page(found: list[tuple[str, str]]) -> Any:
    """For a console of any width: a UUID is broken only where it is narrower than 56 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in found:
        bad = name == "Problem" or BROKEN in words
        table.add_row(Text(name, style="bold red" if bad else "bold"), Text(words, style="red" if bad else ""))
    return table


def _compare() -> int:
    """1 when something that must agree does not."""
    from rich.console import Console
    from rich.table import Table

    if shutil.which(COMMAND[0]) is None:
        sys.stdout.write("nvidia-smi is not installed here, so there is nothing to compare with.\n")
        return 0
    told = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    if told.returncode:
        sys.stderr.write(f"nvidia-smi failed: {(told.stdout + told.stderr).strip()}\n")
        return 1
    lines = list(compare(_look()[0].gpus, told.stdout))
    table = Table("GPU", "field", "detector", "nvidia-smi", "")
    marks = {True: "same", False: "DIFFERS", None: "moves"}
    for line in lines:
        table.add_row(line.gpu, line.field, line.ours, line.theirs, marks[line.agrees])
    Console().print(table)
    return int(any(line.agrees is False for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m services.resource_detector", description="Tells what this machine has, to a mesh or to you."
    )
    parser.add_argument("--once", action="store_true", help="print what this machine has, and end")
    parser.add_argument("--json", action="store_true", help="with --once: for a program")
    parser.add_argument("--compare", action="store_true", help="print it beside what nvidia-smi says, and end")
    options = parser.parse_args()
    if options.compare:
        sys.exit(_compare())
    sys.exit(_once(as_json=options.json) if options.once else main({"resource_detector": build}))
