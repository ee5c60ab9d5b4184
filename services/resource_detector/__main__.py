import argparse
import asyncio
import sys

from libs.common.errors import WrongSetting
from libs.common.kit.runner import main
from services.resource_detector.wiring import build, look_once


def _once(*, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    try:
        inventory, verdict, rows = asyncio.run(look_once())
    except WrongSetting as error:
        sys.stderr.write(error.message + "\n")
        return 2
    if as_json:
        document = inventory.model_dump(mode="json") | {"tier": verdict.model_dump(mode="json")}
        Console().print_json(data=document)
        return 0
    table = Table(show_header=False)
    for name, found in rows:
        table.add_row(name, found)
    Console().print(table)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.resource_detector", description=__doc__)
    parser.add_argument("--once", action="store_true", help="print what this machine has, and end")
    parser.add_argument("--json", action="store_true", help="with --once: for a program")
    options = parser.parse_args()
    sys.exit(_once(as_json=options.json) if options.once else main({"resource_detector": build}))
