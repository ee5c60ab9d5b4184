import argparse
import sys
import time
from typing import Any

from libs.common.errors import MeshError
from libs.common.kit.runner import main
from services.gpu_orchestrator.wiring import COLUMNS, HEAD, Seen, build, look

EVERY_SECONDS = 1.0


def _table(*, watch: bool) -> int:
    """1 when the orchestrator of this machine does not answer."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        if not watch:
            console.print(_page(look()))
            return 0
        with Live(_page(look()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY_SECONDS)
                live.update(_page(look()), refresh=True)
    except MeshError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    except KeyboardInterrupt:
        return 0


def _page(seen: Seen) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{seen.node_id}  {seen.at:%Y-%m-%d %H:%M:%S} UTC  ({HEAD})", title_justify="left")
    for place, name in enumerate(COLUMNS):
        is_text = place in (0, 1, len(COLUMNS) - 1)
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in seen.rows:
        table.add_row(*map(Text, row.cells), style="red" if row.bad else "")
    return Group(table, *(Text(note, style="yellow") for note in seen.notes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m services.gpu_orchestrator", description="Gives this machine's memory away, GPUs' and RAM."
    )
    parser.add_argument("--table", action="store_true", help="print the ledger of the one that runs here, and end")
    parser.add_argument("--watch", action="store_true", help="with --table: again every second, until Ctrl-C")
    options = parser.parse_args()
    sys.exit(_table(watch=options.watch) if options.table else main({"gpu_orchestrator": build}))
