"""How fast the queue is beside others: medians of five, all in one run on this machine.

    python -m benchmarks.peers [--runs 5] [--items 3000] [--only NAME …] [--json FILE]
    python -m benchmarks.peers table

A run of one queue: its store and nothing else is started, ITEMS no-op items of 300 bytes are submitted, then its worker
starts; the rate is that between the first job and the last. Then, on the idle queue, 200 items one at a time: from
before the submission until the job runs. The truth are times that the jobs themselves append to a file.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers import mesh_queue, report
from benchmarks.peers.marks import count, times
from benchmarks.peers.stores import Store, environment, jetstream, postgres, redis
from tools.free_ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".cache" / "peers"
SINGLES = 200
PATIENCE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Queue:
    """`module` is the one of this folder that has its submitter and its worker."""

    name: str
    module: str
    kept: str
    synced: bool
    store: Store
    worker: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def queues() -> tuple[Queue, ...]:
    celery = ("-m", "celery", "-A", "benchmarks.peers.celery_queue", "worker", "--concurrency", "2", "-l", "ERROR")
    dramatiq = ("-m", "dramatiq", "benchmarks.peers.dramatiq_queue", "--processes", "2", "--threads", "8")
    arq = ("-m", "arq", "benchmarks.peers.arq_queue.WorkerSettings")
    taskiq = (
        *("-m", "taskiq", "worker", "benchmarks.peers.taskiq_queue:broker"),
        *("--workers", "2", "--ack-type", "when_executed", "--log-level", "ERROR"),
    )
    procrastinate = ("-m", "procrastinate", "-a", "benchmarks.peers.procrastinate_queue.app")
    always, second, usual = redis("always"), redis("everysec"), jetstream("2m")
    redis_always, redis_second = "Redis, AOF always", "Redis, AOF every second"
    return (
        Queue("Compute Mesh", "mesh", "JetStream, sync always", True, jetstream("always"), mesh_queue.WORKER),
        Queue("Compute Mesh", "mesh", "JetStream, default sync", False, usual, mesh_queue.WORKER),
        Queue("Celery", "celery", redis_always, True, always, celery),
        Queue("Celery", "celery", redis_second, False, second, celery),
        Queue("Dramatiq", "dramatiq", redis_always, True, always, dramatiq),
        Queue("Dramatiq", "dramatiq", redis_second, False, second, dramatiq),
        Queue("arq", "arq", redis_always, True, always, arq),
        Queue("arq", "arq", redis_second, False, second, arq),
        Queue("taskiq-nats", "taskiq", "JetStream, sync always", True, jetstream("always"), taskiq),
        Queue("taskiq-nats", "taskiq", "JetStream, default sync", False, usual, taskiq),
        Queue(
            "procrastinate",
            "procrastinate",
            "PostgreSQL, fsync",
            True,
            postgres(),
            (*procrastinate, "worker", "--concurrency", "50", "--delete-jobs", "always"),
            (*procrastinate, "schema", "--apply"),
        ),
    )


async def measure(queue: Queue, items: int) -> dict[str, Any]:
    """Seconds to submit, jobs per second, and the waits of single ones in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        directory = Path(folder)
        marks = directory / "marks"
        marks.touch()
        async with _started(queue, directory, marks) as settings:
            submitted = await _client(queue, settings, "many", items)
            async with _process(_python(queue), queue.worker, settings, directory / "worker.log"):
                await _ran(marks, items, directory)
                at = times(marks)
                singles = await _client(queue, settings, "single", SINGLES)
            ran = count(marks)
    expected = items + len(singles) + 10
    return {
        "submit_seconds": submitted,
        "jobs_per_second": (items - 1) * 1e9 / (at[-1] - at[0]),
        "milliseconds": singles,
        "ran_twice": ran - expected,
    }


@asynccontextmanager
async def _started(queue: Queue, directory: Path, marks: Path) -> AsyncIterator[dict[str, str]]:
    """The store, with what must run or be there before anything is submitted; gives the settings of all processes."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(queue.store(directory))
        settings = environment(STORE_URL=url, MARKS=str(marks), PYTHONPATH=str(ROOT))
        if queue.module == "mesh":
            port = free_port()
            settings |= mesh_queue.SETTINGS | {
                "NATS_URL": url,
                "MESH_DATA_DIR": str(directory / "data"),
                "WORK_MARSHALING_PORT": str(port),
                "WORK_MARSHALING_URL": f"http://127.0.0.1:{port}",
                "NODE_AGENT_PORT": str(free_port()),
            }
            log = directory / "marshaling.log"
            await stack.enter_async_context(_process(sys.executable, mesh_queue.MARSHALING, settings, log))
            await _ready(settings["WORK_MARSHALING_URL"], log)
        if queue.before:
            subprocess.run([_python(queue), *queue.before], env=settings, check=True, capture_output=True)
        yield settings


def _python(queue: Queue) -> str:
    return sys.executable if queue.module == "mesh" else str(PEERS / "bin" / "python")


@asynccontextmanager
async def _process(python: str, arguments: Sequence[str], settings: dict[str, str], log: Path) -> AsyncIterator[None]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            python, *arguments, env=settings, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, 9)
            await process.wait()


async def _client(queue: Queue, settings: dict[str, str], how: str, number: int) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(_python(queue), "-m", "benchmarks.peers.client", queue.module, how, str(number)),
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the submitter of {queue.name} ended:\n{error.decode()[-3000:]}")
    return json.loads(out)


async def _ran(marks: Path, items: int, directory: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while count(marks) < items:
        if time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in directory.glob("*.log"))
            raise SystemExit(f"only {count(marks)} of {items} jobs ran:\n{logs}")
        await asyncio.sleep(0.02)


async def _ready(url: str, log: Path) -> None:
    until = time.monotonic() + 30
    async with httpx.AsyncClient(base_url=url) as client:
        while time.monotonic() < until:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    raise SystemExit(f"work marshaling did not become ready:\n{log.read_text()[-2000:]}")


def make_environment() -> None:
    """The peers' packages, away from ours."""
    if not (PEERS / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r")
        subprocess.run([PEERS / "bin" / "python", *install, HERE / "requirements.txt"], check=True)
        (PEERS / "ready").touch()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--only", nargs="*", default=[], help="modules: mesh celery dramatiq arq taskiq procrastinate")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    options = parser.parse_args()
    if options.what == "table":
        report.write(options.json, ROOT / "docs" / "queues.md")
        return 0
    make_environment()
    results = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.release().split('-')[0]}",
        "items": options.items,
        "load_before": os.getloadavg()[0],
        "rows": asyncio.run(_all(options.runs, options.items, options.only)),
    }
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return report.show(results)


async def _all(runs: int, items: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """In turn, not one after another: what else the machine does then falls on all of them."""
    wanted = [queue for queue in queues() if not only or queue.module in only]
    rows: list[dict[str, Any]] = [
        {"queue": queue.name, "kept": queue.kept, "synced": queue.synced, "runs": []} for queue in wanted
    ]
    for number in range(runs):
        for queue, row in zip(wanted, rows, strict=True):
            row["runs"].append(await measure(queue, items))
            print(
                f"run {number + 1}: {queue.name}, {queue.kept}: {row['runs'][-1]['jobs_per_second']:.0f}/s", flush=True
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
