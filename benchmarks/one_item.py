"""Where the time of one item goes: from before its submission until its function runs, on an idle queue.

`python -m benchmarks.one_item [ITEMS] [SYNC]`: ITEMS (300) no-op items of 300 bytes, one at a time, 10 ms after the one
before has run, on a nats-server of its own that syncs its writes by SYNC (always). Work marshaling and a node agent run
in processes of their own, in which the methods that an item passes are stamped with the time. Prints of each step when
it began and how long it took, in microseconds, as medians; a stamp costs about one.
"""

import asyncio
import atexit
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import nats

from benchmarks.peers.client import PAUSE_SECONDS, PAYLOAD
from benchmarks.peers.marks import count, times
from benchmarks.peers.mesh_queue import SETTINGS
from benchmarks.peers.stores import environment
from benchmarks.queue import ready
from libs.common.bus.nats import append, connection, listening, reading
from libs.common.bus.nats.server import ServerOptions, nats_server
from libs.common.contracts.work_log import RECORD
from libs.common.contracts.work_marshaling import ASSIGN, SUBMIT
from services.node_agent import runner_function
from services.work_marshaling.journal import Journal
from tools.free_ports import free_port

Stamp = tuple[str, type, str, Callable[..., bool]]
"""The step that begins, the method with whose call it does, and which calls of it are meant."""

STAMPS: Mapping[str, Sequence[Stamp]] = {
    "work_marshaling": (
        ("read, decided, given to a node", reading.OrderedReader, "_take", lambda _, told, __: _about(told, SUBMIT)),
        (
            "the record: written as JSON",
            Journal,
            "_write",
            lambda _, steps: any(b'"admitted"' in fact for step in steps for fact in step.facts),
        ),
        ("the record: to the log and back", append.Appender, "_send", lambda _, sent, __: _about(sent, RECORD)),
        ("the assignment: written as JSON", append._Append, "answered", lambda sent, _: _about(sent, RECORD)),
        (
            "the assignment: to the agent",
            connection.Connection,
            "publish",
            lambda _, subject, *__: subject.startswith(f"{ASSIGN.subject}."),
        ),
    ),
    "node_agent": (
        ("read, and given a slot", listening._Served, "take", lambda served, _: ASSIGN.subject in served.subject),
        ("the function: into a thread", runner_function._Threads, "submit", lambda *_: True),
    ),
}
FIRST = "submission: to the stream, and on to the leader"


def _about(message: Any, topic: Any) -> bool:
    return bool(message.subject == topic.subject)


def child(service: str, file: Path) -> None:
    """The service, stamped. The file is written when it ends."""
    stamped: list[tuple[int, str]] = []
    for step, owner, method, meant in STAMPS[service]:
        setattr(owner, method, _stamped(getattr(owner, method), step, meant, stamped))
    atexit.register(lambda: file.write_text(json.dumps(stamped)))
    sys.argv = ["services", service]
    runpy.run_module("services", run_name="__main__", alter_sys=True)


def _stamped(
    method: Callable[..., Any], step: str, meant: Callable[..., bool], stamped: list[tuple[int, str]]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*arguments: Any, **named: Any) -> Any:
        if meant(*arguments, **named):
            stamped.append((time.monotonic_ns(), step))
        return method(*arguments, **named)

    if not asyncio.iscoroutinefunction(method):
        return called

    async def awaited(*arguments: Any, **named: Any) -> Any:
        return await called(*arguments, **named)

    return awaited


@contextmanager
def _running(service: str, settings: dict[str, str], directory: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.one_item", "child", service, str(directory / f"{service}.json")]
    with (directory / f"{service}.log").open("wb") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def measure(items: int, sync: str, directory: Path) -> list[tuple[int, int]]:
    """When each item was submitted, and when its function ran."""
    marks = directory / "marks"
    marks.touch()
    async with nats_server(ServerOptions(directory=directory / "nats", port=free_port(), sync_interval=sync)) as server:
        ports = free_port(), free_port()
        settings = environment(MARKS=str(marks), NATS_URL=server.url, MESH_DATA_DIR=str(directory / "data")) | SETTINGS
        settings |= {"WORK_MARSHALING_PORT": str(ports[0]), "NODE_AGENT_PORT": str(ports[1])}
        with ExitStack() as running:
            for service, port in zip(STAMPS, ports, strict=True):
                running.enter_context(_running(service, settings, directory))
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                    await ready(http)
            return await _one_at_a_time(items, server.url, marks)


async def _one_at_a_time(items: int, url: str, marks: Path) -> list[tuple[int, int]]:
    client = await nats.connect(url)
    stream = client.jetstream()
    item = {"work_type": "function", "payload": {"function": "noop", "arguments": PAYLOAD}}
    measured: list[tuple[int, int]] = []
    for number in range(items):
        submitted = time.monotonic_ns()
        await stream.publish(SUBMIT.subject, json.dumps(item).encode())
        while count(marks) == number:
            await asyncio.sleep(0.0002)
        measured.append((submitted, times(marks)[-1]))
        await asyncio.sleep(PAUSE_SECONDS)
    await client.close()
    return measured[items // 10 :]


def steps(measured: Sequence[tuple[int, int]], stamped: Sequence[tuple[int, str]]) -> dict[str, list[tuple[int, int]]]:
    """Of each step, for each item, when it began and how long it took, in nanoseconds since the submission."""
    found: dict[str, list[tuple[int, int]]] = {}
    for submitted, ran in measured:
        began = {FIRST: submitted}
        for at, step in stamped:
            if submitted <= at <= ran:
                began.setdefault(step, at)
        ends = [*list(began.values())[1:], ran]
        for (step, at), end in zip(began.items(), ends, strict=True):
            found.setdefault(step, []).append((at - submitted, end - at))
    return found


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    sync = sys.argv[2] if len(sys.argv) > 2 else "always"
    with tempfile.TemporaryDirectory() as directory:
        measured = asyncio.run(measure(items, sync, Path(directory)))
        stamped = sorted(
            stamp for name in STAMPS for stamp in json.loads((Path(directory) / f"{name}.json").read_text())
        )
    print(f"{'step':<50} {'began':>8} {'took':>8}   us, sync {sync}, load average {os.getloadavg()[0]:.1f}")
    medians = {
        step: [statistics.median(each) / 1000 for each in zip(*values, strict=True)]
        for step, values in steps(measured, stamped).items()
    }
    for step, (began, took) in sorted(medians.items(), key=lambda each: each[1]):
        print(f"{step:<50} {began:>8.0f} {took:>8.0f}")
    whole = statistics.median(ran - submitted for submitted, ran in measured)
    print(f"{'the function runs':<50} {whole / 1000:>8.0f}")


if __name__ == "__main__":
    main()
