"""Clients that reserve GPU memory and give it back, and an observer that believes only what it sees itself."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nats.micro.request import ERROR_CODE_HEADER

from libs.common.bus.nats.transport import connect
from tests.nvml.machines import Machine

Ask = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
"""`reserve` or `release` with what is asked: the HTTP status (or that of the error) and the answer."""


@dataclass
class Observer:
    """Knows what the simulator's description says and which grants its own clients hold, nothing of the ledger.

    A grant holds from its answer until its release is sent, so what is counted is never more than what is held. The
    memory that strangers use is counted at its least between the question and the answer.
    """

    machine: Machine
    held: dict[str, dict[int, int]] = field(default_factory=dict)
    checked: int = 0
    over_commits: list[str] = field(default_factory=list)
    foreign: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)

    def described(self, machine: Machine) -> None:
        """Told once the file is in its place."""
        used = tuple(gpu.memory[1] for gpu in machine.gpus)
        self.foreign.append((time.monotonic(), used))

    def granted(self, name: str, gpus: list[int], mib: int, asked_at: float) -> None:
        self.held[name] = dict.fromkeys(gpus, mib)
        for gpu in gpus:
            total, _, driver = self.machine.gpus[gpu].memory
            claimed = sum(each.get(gpu, 0) for each in self.held.values())
            foreign = self._least_foreign(gpu, asked_at)
            self.checked += 1
            if claimed + foreign + driver > total:
                self.over_commits.append(f"GPU {gpu}: {claimed} claimed, {foreign} foreign, {driver} of {total}")

    def returned(self, name: str) -> None:
        del self.held[name]

    def _least_foreign(self, gpu: int, since: float) -> int:
        before = [used for at, used in self.foreign if at <= since][-1]
        return min(before[gpu], *(used[gpu] for at, used in self.foreign if at > since), before[gpu])


@dataclass
class Crowd:
    """`pairs`: milliseconds that one reserve and its release took together."""

    ask: Ask
    observer: Observer
    rounds_per_second: float
    pairs: list[float] = field(default_factory=list)
    reserves: list[float] = field(default_factory=list)
    releases: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0

    async def run(self, reservers: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._reserver(number, until) for number in range(reservers)))

    async def _reserver(self, number: int, until: float) -> None:
        chance = random.Random(number)  # the same crowd every time
        if self.rounds_per_second:
            await asyncio.sleep(chance.random() / self.rounds_per_second)
        while (began := time.monotonic()) < until:
            await self._round(chance, f"{number}-{began}")
            if self.rounds_per_second:
                await asyncio.sleep(max(0.0, began + 1 / self.rounds_per_second - time.monotonic()))

    async def _round(self, chance: random.Random, name: str) -> None:
        mib = chance.randrange(256, 16_384)
        count = chance.choice((1, 1, 1, 2))
        began = time.monotonic()
        status, answer = await self.ask("reserve", {"required_mb": mib, "gpu_count": count, "ram_mb": 1})
        reserved = time.monotonic()
        if status != 200:
            self.refused += status == 409
            self.failed += status != 409
            return
        self.observer.granted(name, answer["gpu_indices"], mib, began)
        self.observer.returned(name)
        asked = {"reservation_id": answer["reservation_id"], "token": answer["token"]}
        again = time.monotonic()
        status, _ = await self.ask("release", asked)
        self.failed += status != 200
        released = time.monotonic()
        self.reserves.append(1000 * (reserved - began))
        self.releases.append(1000 * (released - again))
        self.pairs.append(1000 * (reserved - began + released - again))


@asynccontextmanager
async def over_nats(url: str, node_token: str) -> AsyncIterator[Ask]:
    async with connect(url, name="reservers") as client:

        async def ask(what: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            subject = f"compute.gpu.{what}.v1.{node_token}"
            reply = await client.request(subject, json.dumps(body).encode(), {}, timeout=30)
            failed = reply.headers.get(ERROR_CODE_HEADER)
            return int(failed) if failed else 200, json.loads(reply.payload)

        yield ask


@asynccontextmanager
async def over_http(port: int, connections: int) -> AsyncIterator[Ask]:
    """The barest client there is, so that its own time is little: one kept connection for each that asks at once."""
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    for connection in opened:
        free.put_nowait(connection)

    async def ask(what: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        reader, writer = connection = await free.get()
        if what == "release":
            line = f"DELETE /api/v1/gpu/reservations/{body['reservation_id']}?token={body['token']}"
            content = b""
        else:
            line, content = "POST /api/v1/gpu/reserve", json.dumps(body).encode()
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(told.partition("content-length:")[2].split("\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        free.put_nowait(connection)
        return int(told.split()[1]), answer

    try:
        yield ask
    finally:
        for _, writer in opened:
            writer.close()
