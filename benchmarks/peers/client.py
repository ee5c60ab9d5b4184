"""The submitter, in the environment of the queue it speaks to.

`python -m benchmarks.peers.client QUEUE many COUNT` prints for how many seconds it submitted, `… single COUNT` how many
milliseconds passed from each submission until its job ran, one at a time.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.peers.marks import count, times

PAYLOAD = "x" * 260
BATCH = 1_000
PAUSE_SECONDS = 0.01

Submit = Callable[[list[str]], Awaitable[None]]


async def many(submit: Submit, items: int) -> float:
    started = time.perf_counter()
    for first in range(0, items, BATCH):
        await submit([PAYLOAD] * min(BATCH, items - first))
    return time.perf_counter() - started


async def single(submit: Submit, items: int) -> list[float]:
    """The first few are not counted: connections are made then."""
    marks = Path(os.environ["MARKS"])
    waited: list[float] = []
    for _ in range(items + 10):
        before = count(marks)
        started = time.monotonic_ns()
        await submit([PAYLOAD])
        while count(marks) == before:
            await asyncio.sleep(0.0002)
        waited.append((times(marks)[-1] - started) / 1e6)
        await asyncio.sleep(PAUSE_SECONDS)
    return waited[10:]


def main() -> None:
    name, how, number = sys.argv[1:]
    submit: Submit = importlib.import_module(f"benchmarks.peers.{name}_queue").submit
    measure = {"many": many, "single": single}[how]
    print(json.dumps(asyncio.run(measure(submit, int(number)))), flush=True)
    os._exit(0)  # some of them have threads that never end


if __name__ == "__main__":
    main()
