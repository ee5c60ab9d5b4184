"""Whether the registry believes the right thing about a thousand machines, and what that costs.

`python -m benchmarks.registry [--nodes 1000] [--interval 5] [--minutes 10] [--json FILE]`: a nats-server, a registry
and a program that speaks NATS for all machines (`benchmarks.simulated_nodes`), each a process of its own. First the
machines are watched for so many minutes, with nothing else going on; then the registry is asked; then ten machines
fall silent. Prints each figure beside its limit; exits 1 when one is missed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats
import psutil
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.common.bus.nats.server import ServerOptions, nats_server
from tools.free_ports import free_port

MIB = 1024 * 1024
QUERIES, PAGES, SILENCED = 500, 200, 10
PLACEMENT = {
    "requires_gpu": True,
    "min_tier": "GPU_PEER",
    "online_only": True,
    "min_gpu_count": 4,
    "min_free_vram_mb": 40_000,
    "sort": "-free_vram_mb",
    "limit": 10,
}
"""What a scheduler asks: all nodes are judged, the best ten are told."""


@dataclass(frozen=True, slots=True)
class Program:
    process: asyncio.subprocess.Process
    log: Path

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode()

    async def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        return await self.line()


@dataclass(slots=True)
class Changes:
    """When each node was last said to be in which state."""

    at: dict[tuple[str, str], float] = field(default_factory=dict)

    async def hear(self, message: Msg) -> None:
        told = json.loads(message.data)
        self.at[told["node_id"], told["state"]] = time.monotonic()

    def false(self, silenced: Mapping[str, float]) -> dict[str, int]:
        return {
            state: sum(1 for node_id, said in self.at if said == state and node_id not in silenced)
            for state in ("SUSPECT", "OFFLINE")
        }


@asynccontextmanager
async def program(log: Path, *arguments: str, **environment: str) -> AsyncIterator[Program]:
    pipe = asyncio.subprocess.PIPE
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, env={**os.environ, **environment}, stdin=pipe, stdout=pipe, stderr=errors
        )
    try:
        yield Program(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure(nodes: int, interval: float, minutes: float, directory: Path) -> dict[str, float]:
    port = str(free_port())
    async with nats_server(ServerOptions(directory=directory / "nats", port=free_port())) as server:
        settings = {"NATS_URL": server.url, "MESH_DATA_DIR": str(directory / "data"), "NODE_REGISTRY_PORT": port}
        async with (
            program(directory / "registry.log", "services.node_registry", **settings) as registry,
            await nats.connect(server.url) as client,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        ):
            changes = Changes()
            await client.subscribe("compute.nodes.status.v1", cb=changes.hear)
            await until_good(http, "/readyz", lambda _: True)
            crowd = ("benchmarks.simulated_nodes", server.url, str(nodes), str(interval))
            async with program(directory / "nodes.log", *crowd) as simulated:
                await until_good(http, "/api/v1/stats", lambda told: told["states"].get("ONLINE") == nodes)
                measured = await _watch(psutil.Process(registry.process.pid), 60 * minutes)
                measured |= {"false_while_watched": sum(changes.false({}).values())}
                measured |= await _asked(client, http)
                measured |= {"false_while_asked": sum(changes.false({}).values()) - measured["false_while_watched"]}
                return measured | await _silenced(simulated, changes, http, nodes, interval)


async def _watch(registry: psutil.Process, seconds: float) -> dict[str, float]:
    before, began, largest = registry.cpu_times(), time.monotonic(), 0.0
    while (passed := time.monotonic() - began) < seconds:
        await asyncio.sleep(min(1.0, seconds - passed))
        largest = max(largest, registry.memory_info().rss / MIB)
    after = registry.cpu_times()
    used = after.user + after.system - before.user - before.system
    return {"cpu_percent": 100 * used / (time.monotonic() - began), "memory_mb": largest}


async def _asked(client: Client, http: httpx.AsyncClient) -> dict[str, float]:
    async def query() -> None:
        answer = await client.request("compute.nodes.query.v1", json.dumps(PLACEMENT).encode(), timeout=10)
        assert answer.data.count(b'"state_reason"') == PLACEMENT["limit"], answer.data[:500]

    async def page() -> None:
        (await http.get("/api/v1/nodes", params={"limit": 100})).raise_for_status()

    queries, pages = await _times(query, QUERIES), await _times(page, PAGES)
    return {
        "query_p50_ms": statistics.median(queries),
        "query_p99_ms": queries[int(0.99 * len(queries))],
        "page_p50_ms": statistics.median(pages),
        "page_p95_ms": pages[int(0.95 * len(pages))],
    }


async def _times(ask: Callable[[], Awaitable[None]], count: int) -> list[float]:
    """Milliseconds, the shortest first."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await ask()
        taken.append(1000 * (time.perf_counter() - began))
    return sorted(taken)


async def _silenced(
    simulated: Program, changes: Changes, http: httpx.AsyncClient, nodes: int, interval: float
) -> dict[str, float]:
    """Nodes fall silent, each at another moment of its interval: the slowest counts."""
    silenced: dict[str, float] = {}
    count = min(SILENCED, max(1, nodes // 10))
    for number in range(count):
        node_id = f"node-{number * nodes // count:05}"
        silenced[node_id] = float((await simulated.tell(node_id)).split()[1])
    await asyncio.sleep(6 * interval + 3)  # two seconds more than it may take
    assert simulated.process.stdin is not None
    simulated.process.stdin.close()
    late = float((await simulated.line()).split()[1])
    states = (await http.get("/api/v1/stats")).json()["states"]
    false = changes.false(silenced)
    return {
        "false_suspect": false["SUSPECT"],
        "false_offline": false["OFFLINE"],
        "not_online": nodes - len(silenced) - states.get("ONLINE", 0),
        "suspect_seconds": _slowest(changes, silenced, "SUSPECT"),
        "offline_seconds": _slowest(changes, silenced, "OFFLINE"),
        "latest_beat_seconds": late,
    }


def _slowest(changes: Changes, silenced: Mapping[str, float], state: str) -> float:
    return max(changes.at.get((node_id, state), float("inf")) - at for node_id, at in silenced.items())


async def until_good(http: httpx.AsyncClient, path: str, good: Callable[[dict[str, dict[str, int]]], bool]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            answer = await http.get(path)
            if answer.status_code == httpx.codes.OK and good(answer.json()):
                return
        except httpx.TransportError:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
    raise SystemExit(f"{path} did not become good within a minute")


def limits(interval: float) -> dict[str, float]:
    return {
        "false_suspect": 0,
        "false_offline": 0,
        "not_online": 0,
        "cpu_percent": 25,
        "memory_mb": 200,
        "query_p50_ms": 3,
        "query_p99_ms": 15,
        "page_p95_ms": 30,
        "suspect_seconds": 3 * interval + 1,
        "offline_seconds": 6 * interval + 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the registry.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two heartbeats of a node")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the nodes are watched")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measured = asyncio.run(measure(asked.nodes, asked.interval, asked.minutes, Path(directory)))
    told = {"nodes": asked.nodes, "interval_seconds": asked.interval, "minutes": asked.minutes}
    told |= {"load_average": os.getloadavg()[0], **measured}
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return report(told, limits(asked.interval))


def report(measured: Mapping[str, float], limits: Mapping[str, float]) -> int:
    """A line for each figure. Returns the exit code."""
    missed = 0
    print(f"{'':<20} {'measured':>10} {'limit':>8} {'ratio':>7}")
    for name, value in measured.items():
        if (limit := limits.get(name)) is None:
            print(f"{name:<20} {value:10.2f}")
            continue
        missed += value > limit
        ratio = f"{value / limit:7.2f}" if limit else f"{'-':>7}"
        print(f"{name:<20} {value:10.2f} {limit:8g} {ratio}  {'MISSED' if value > limit else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
