"""A process that talks to a vendor's library for us: the part that is the same for every library.

One JSON object per line comes in, one goes out for each. The process ends when its input does, even in the middle of a
call that is stuck, and what the library prints never reaches the answers.
"""

import json
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

Answer = Callable[[str], dict[str, Any]]
"""From what is asked for to the answer."""


def serve(start: Callable[[], Answer]) -> None:
    """`start` opens the library, however long it takes, and gives what answers every question. Does not return."""
    answers = _private_output()
    threading.Thread(target=_end_with_input, daemon=True).start()
    answer = start()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        answers.write(json.dumps({"id": question["id"], **answer(question["ask"])}) + "\n")
        answers.flush()
    os._exit(0)  # nobody asks any more


def _end_with_input() -> None:
    """A call that is stuck must not keep us here. That the other end is closed is told to who waits for nothing else,
    while another thread reads."""
    other_end = select.poll()
    other_end.register(0, 0)
    other_end.poll()
    os._exit(0)


def _private_output() -> TextIO:
    """Our answers' own way out: what a vendor's library prints goes to the error stream instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
