"""What the agents run here. Every run writes its own two lines, whatever anybody counts elsewhere."""

import os
import signal
import time
import uuid
from typing import Any


def note(arguments: Any) -> Any:
    """Say that it begins, take a while, say that it ended. The result names the run. Some fail the first time, and some
    take no time when they are run again."""
    run = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    _append(arguments["file"], f"begin {arguments['name']} {run}")
    if arguments["fails_first"] and _first_time(f"{arguments['file']}.{arguments['name']}"):
        _append(arguments["file"], f"fail {arguments['name']} {run}")
        raise RuntimeError("the first run of this job fails")
    if not arguments["short_again"] or _first_time(f"{arguments['file']}.{arguments['name']}"):
        time.sleep(arguments["seconds"])
    _append(arguments["file"], f"end {arguments['name']} {run}")
    return {"run": run}


def poison(arguments: Any) -> Any:
    """End the process that runs it."""
    _append(arguments["file"], f"begin {arguments['name']} {os.getpid()}-poison")
    os.kill(os.getpid(), signal.SIGKILL)


def _first_time(marker: str) -> bool:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _append(path: str, line: str) -> None:
    """One write to a file opened for appending: lines of many processes never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
