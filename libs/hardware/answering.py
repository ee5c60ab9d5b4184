"""A process that talks to a vendor's library for us: the part that is the same for every library.

One JSON object per line comes in, one goes out for each. The process ends when its input does, even in the middle of a
call that is stuck, and what the library prints never reaches the answers.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

Answer = Callable[[str], dict[str, Any]]
"""From what is asked for to the answer."""


def serve(start: Callable[[], Answer]) -> None:
    """`start` opens the library, however long it takes, and gives what answers every question. Does not return."""
    answers = _private_output()
    questions: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    answer = start()
    while True:
        question = questions.get()
        answers.write(json.dumps({"id": question["id"], **answer(question["ask"])}) + "\n")
        answers.flush()


def _listen(questions: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        questions.put(json.loads(line))
    os._exit(0)  # nobody asks any more; a call that is stuck must not keep us here


def _private_output() -> TextIO:
    """Our answers' own way out: what a vendor's library prints goes to the error stream instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
