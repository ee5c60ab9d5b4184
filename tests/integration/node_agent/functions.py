"""Functions that tests let the agent call."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

gates: dict[str, threading.Event] = {}
reached: dict[str, threading.Event] = {}


def gate(name: str) -> threading.Event:
    """Opened by a test to let `wait_at` go on."""
    reached.setdefault(name, threading.Event())
    return gates.setdefault(name, threading.Event())


def echo(arguments: Any) -> Any:
    return arguments


def append_line(arguments: Any) -> Any:
    with Path(arguments["file"]).open("a", encoding="utf-8") as file:
        file.write(arguments["line"] + "\n")
    return {"line": arguments["line"]}


def wait_at(arguments: Any) -> Any:
    opened = gate(arguments)
    reached[arguments].set()
    if not opened.wait(30):
        raise TimeoutError("nobody opened the gate")
    return "went through"


def fail(arguments: Any) -> Any:
    raise ValueError(f"does not like {arguments}")


def huge(arguments: Any) -> Any:
    return "x" * int(arguments)


def not_json(_: Any) -> Any:
    return {1, 2, 3}


def say(arguments: Any) -> Any:
    print(arguments)  # noqa: T201  # what it prints is the job's output
    return "said"


def sleep_with_child(arguments: Any) -> Any:
    """Ignores SIGTERM if it is asked to, and has a child that does."""
    if arguments["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {arguments['seconds']} & wait; wait"])
    Path(arguments["file"]).write_text(f"{os.getpid()}\n", encoding="utf-8")
    child.wait()
    return "woke up"


def die(arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    return arguments


def own_pid(_: Any) -> Any:
    return os.getpid()


def seen_gpus(_: Any) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")
