"""A process that calls functions for the agent, one after another.

`python -m services.node_agent.function_process DESCRIPTOR`, started by the agent as the leader of a group. A line of
JSON on standard input is a call, `{"place": "module:function", "arguments": …}`; a line on the descriptor is how it
ended. What the function prints is the job's output; `END_OF_OUTPUT` after it says that it is all. When its input ends
the agent is gone: then it ends at once, with all that it started.
"""

import importlib
import json
import os
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from services.node_agent.function_facts import END_OF_OUTPUT, LARGEST_RESULT


def _hear(calls: BinaryIO, heard: "SimpleQueue[dict[str, Any]]") -> None:
    for line in calls:
        heard.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _called(call: dict[str, Any]) -> bytes:
    """How it ended, as a line."""
    module, _, attribute = call["place"].partition(":")
    try:
        result = getattr(importlib.import_module(module), attribute)(call["arguments"])
    except Exception as error:  # noqa: BLE001  # told to the agent
        return _line({"failed": f"{type(error).__name__}: {error}"})
    try:
        line = _line({"result": result})
    except (TypeError, ValueError, RecursionError) as error:
        return _line({"bad_result": f"the result is not JSON: {error}"})
    if len(line) > LARGEST_RESULT:
        return _line({"too_large": f"the result has {len(line)} bytes"})
    return line


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"


def main() -> None:
    os.set_inheritable(int(sys.argv[1]), False)
    told = os.fdopen(int(sys.argv[1]), "wb")
    calls = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=_hear, args=(calls, heard), daemon=True).start()
    while True:
        line = _called(heard.get())
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(1, END_OF_OUTPUT)
        told.write(line)
        told.flush()


if __name__ == "__main__":
    main()
