"""Functions that tests let the agent call."""

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
