import argparse
import sys
import time
from typing import Any, Literal

from libs.common.errors import MeshError
from libs.common.kit.runner import main
from services.gpu_orchestrator.wiring import COLUMNS, HEAD, NAME, Seen, build, look, widths

EVERY_SECONDS = 1.0


def _table(*, watch: bool) -> int:
    """1 when the orchestrator of this machine does not answer; who watches is told so, and waits for it."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        page = _page(look(), console.width)
        if not watch:
            console.print(page)
            return 0
        with Live(page, console=console, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY_SECONDS)
                live.update(_seen_again(console.width), refresh=True)
    except MeshError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    except KeyboardInterrupt:
        return 0


def _seen_again(width: int) -> Any:
    from rich.text import Text

    try:
        return _page(look(), width)
    except MeshError as error:
        return Text(error.message, style="red")


def _page(seen: Seen, width: int) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = widths(seen.rows, width)
    table = Table(title=f"{seen.node_id}  {seen.at:%Y-%m-%d %H:%M:%S} UTC  ({HEAD})", title_justify="left")
    for place, wide in shown.items():
        is_text = place in (0, NAME, len(COLUMNS) - 1)
        overflow: Literal["fold", "ellipsis"] = "ellipsis" if place == NAME else "fold"
        is_whole = place != len(COLUMNS) - 1
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(COLUMNS[place], justify=justify, overflow=overflow, no_wrap=is_whole, width=wide)
    for row in seen.rows:
        table.add_row(*(Text(row.cells[place]) for place in shown), style="red" if row.bad else "")
    return Group(table, *(Text(note, style="yellow") for note in seen.notes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m services.gpu_orchestrator", description="Gives this machine's memory away, GPUs' and RAM."
    )
    parser.add_argument("--table", action="store_true", help="print the ledger of the one that runs here, and end")
    parser.add_argument("--watch", action="store_true", help="with --table: again every second, until Ctrl-C")
    options = parser.parse_args()
    sys.exit(_table(watch=options.watch) if options.table else main({"gpu_orchestrator": build}))
