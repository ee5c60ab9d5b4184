"""Submitters that keep their receipts, by every door, and never give up on an item of theirs."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import nats as nats_py
from nats.aio.client import Client
from nats.errors import Error as NatsError

from tests.faults.stage import Stage
from tests.faults.truth import ENDED, Evidence, Lines

BACKLOG = 500
MORE = 300
AT_LEAST_RUNNING = 100
BATCH = 20
PAUSE_SECONDS = 0.1
JOB_SECONDS = (0.6, 1.4)
FAILING_SHARE = 0.05
FAR_SHARE = 0.1
FAR_BYTES = 6000


class Crowd:
    """Submits until it is told that it is enough, and then sees to the end of every item."""

    def __init__(
        self, stage: Stage, chance: random.Random, *, most: int, seconds: tuple[float, float] = (0.6, 1.4)
    ) -> None:
        self.stage = stage
        self.lines = Lines(stage.lines)
        self.names: list[str] = []
        self.receipts: dict[str, set[str]] = {}
        self.poison: set[str] = set()
        self.refusals: dict[str, int] = {}
        self.least_running: int | None = None
        self.bodies: dict[str, dict[str, Any]] = {}
        self.padding = 0
        self.short_again = False
        self.results_go = False
        self._backlog = BACKLOG
        self._chance = chance
        self.most = most
        self._enough = asyncio.Event()
        self._is_last = False
        self._sequences: dict[str, set[int]] = {}
        self._seen: dict[str, Mapping[str, Any]] = {}
        self._http = httpx.AsyncClient(timeout=20, trust_env=False)
        self._nats: Client | None = None

    # Submitting

    async def submit(self) -> None:
        """By REST one by one with ids of their own, by REST in batches without, by plain NATS without."""
        async with asyncio.TaskGroup() as doors:
            for _ in range(4):
                doors.create_task(self._one_by_one())
            doors.create_task(self._in_batches())
            doors.create_task(self._by_nats())

    def limit_backlog(self, items: int) -> None:
        """How many may wait at once before the submitters pause."""
        self._backlog = items

    def enough(self) -> None:
        self._enough.set()

    def all_was_done(self) -> None:
        """Nothing happens to the mesh any more: what is still to be submitted is the last."""
        self._is_last = True

    def item(self, *, own_id: bool, poison: bool = False) -> dict[str, Any]:
        name = f"i{len(self.names)}"
        self.names.append(name)
        arguments = {"file": str(self.stage.lines), "name": name, "seconds": self._chance.uniform(*JOB_SECONDS)}
        arguments["short_again"] = self.short_again
        arguments["fails_first"] = not self.short_again and self._chance.random() < FAILING_SHARE
        padding = "x" * (FAR_BYTES if self._chance.random() < FAR_SHARE else self.padding)
        body: dict[str, Any] = {
            "retry_delay_seconds": 3,
            "work_type": "function",
            "payload": {"function": "poison" if poison else "note", "arguments": arguments, "padding": padding},
            "labels": {"name": name},
        }
        if own_id:
            body["work_id"] = f"own-{name}"
        if poison:
            self.poison.add(name)
        self.bodies[name] = body
        return body

    async def _turn(self) -> bool:
        """Wait for one's turn to submit; False when it is enough."""
        while not self._enough.is_set():
            if self._promised() >= self.most:
                if self._is_last:
                    return False
            elif self._promised() - len(self.poison) - len(self.lines.read().over) < self._backlog:
                return True
            await asyncio.sleep(PAUSE_SECONDS)
        return False

    def _promised(self) -> int:
        return len(self.receipts) + len(self._sequences)

    async def _one_by_one(self) -> None:
        while await self._turn():
            body = self.item(own_id=True)
            await self.insist(body)

    async def insist(self, body: dict[str, Any]) -> None:
        """With an id of its own an item may be submitted until there is a receipt."""
        for door in self._doors():
            answer = await self._post(f"{door}/api/v1/work/submit", body)
            if answer is not None and answer.status_code == httpx.codes.ACCEPTED:
                self._keep(body["labels"]["name"], answer.json()["work_id"])
                return
            await asyncio.sleep(PAUSE_SECONDS)

    def _doors(self) -> Iterator[str]:
        while True:
            yield from self.stage.doors()

    async def _in_batches(self) -> None:
        for door in self._doors():
            if not await self._turn():
                return
            if not await self.batch(door, BATCH):
                await asyncio.sleep(5 * PAUSE_SECONDS)

    async def batch(self, door: str, items: int) -> bool:
        """Without ids of their own: what gets no receipt was not promised, and is not submitted again."""
        bodies = [self.item(own_id=False) for _ in range(items)]
        answer = await self._post(f"{door}/api/v1/work/submit-batch", {"items": bodies})
        if answer is None or answer.status_code != httpx.codes.ACCEPTED:
            return False
        for body, each in zip(bodies, answer.json()["answers"], strict=True):
            if each["accepted"] is not None:
                self._keep(body["labels"]["name"], each["accepted"]["work_id"])
            else:
                self._refused(each["error"]["code"])
        return True

    async def _by_nats(self) -> None:
        while await self._turn():
            await self.publish(self.item(own_id=False))
            await asyncio.sleep(0.02)

    async def publish(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        """As a stranger does it: a request whose reply is the stream's receipt. Without one nothing was promised."""
        try:
            client = await self.client()
            reply = await client.request("compute.work.submit.v1", json.dumps(body).encode(), 5, headers=headers)
        except (NatsError, OSError, TimeoutError):
            await asyncio.sleep(PAUSE_SECONDS)
            return
        told = json.loads(reply.data)
        if "error" in told:
            self._refused(told["error"]["description"])
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            self._sequences.setdefault(body["labels"]["name"], set()).add(told["seq"])

    async def client(self) -> Client:
        if self._nats is None:
            self._nats = await nats_py.connect(
                self.stage.nats.url, error_cb=_quiet, max_reconnect_attempts=-1, reconnect_time_wait=0.2
            )
        return self._nats

    async def _post(self, url: str, body: dict[str, Any]) -> httpx.Response | None:
        try:
            answer = await self._http.post(url, json=body)
        except httpx.TransportError:
            return None
        if answer.status_code != httpx.codes.ACCEPTED:
            self._refused(str(answer.status_code))
        return answer

    def _keep(self, name: str, work_id: str) -> None:
        self.receipts.setdefault(name, set()).add(work_id)

    def _refused(self, why: str) -> None:
        self.refusals[why] = self.refusals.get(why, 0) + 1

    # Watching

    async def reach(self, items: int) -> None:
        """Wait until so many were promised."""
        while self._promised() < items:
            await asyncio.sleep(0.02)

    async def busy(self, least: int = AT_LEAST_RUNNING, *, seconds: float = 120, jitter: float = 1.0) -> None:
        """Wait for a random instant at which so many jobs run; keep the least number there ever was.

        Where all has ended before everything was done to the mesh, more is submitted.
        """
        until = time.monotonic() + seconds
        await asyncio.sleep(self._chance.uniform(0, jitter))
        while (running := self.running()) < least:
            if time.monotonic() > until:
                break
            if self._nothing_left():
                self.most += MORE
            await asyncio.sleep(0.02)
        self.least_running = running if self.least_running is None else min(self.least_running, running)

    def _nothing_left(self) -> bool:
        """Whether so few jobs run because there are no more."""
        return self._promised() >= self.most and len(self.lines.over) + len(self.poison) >= self._promised()

    async def all_ended(self) -> None:
        """Wait until all that is to be submitted was, and has ended."""
        await self.reach(self.most)
        while (stats := await self._get("/api/v1/stats")) is None or stats["open_items"]:
            await asyncio.sleep(PAUSE_SECONDS)

    def running(self) -> int:
        return self.lines.read().running(self.stage.agent_pids())

    async def watch(self) -> None:
        """Look at random items all the time, and remember how they had ended."""
        while True:
            await asyncio.sleep(0.05)
            if self.receipts:
                await self.look(next(iter(self._chance.choice(list(self.receipts.values())))))

    async def poison_is_over(self) -> bool:
        for name in self.poison:
            for work_id in self.receipts.get(name, ()):
                await self.look(work_id)
                if work_id not in self._seen:
                    return False
        return True

    async def look(self, work_id: str) -> None:
        if work_id in self._seen:
            return
        view = await self._get(f"/api/v1/work/{work_id}")
        if view is not None and view.get("status") in ENDED:
            self._seen[work_id] = view

    async def _get(self, path: str) -> Any:
        for door in self.stage.doors():
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.get(f"{door}{path}")
                if answer.status_code == httpx.codes.OK:
                    return answer.json()
        return None

    async def _led(self) -> None:
        """One that is ready may still stand by, until the lease of the one that was killed is over."""
        async with asyncio.timeout(60):
            while await self._get("/api/v1/stats") is None:
                await asyncio.sleep(0.1)

    # The end

    async def settle(self, seconds: float) -> None:
        """Wait until every item that was accepted has ended, but not longer."""
        until = time.monotonic() + seconds
        await self._name_sequences(until)
        while time.monotonic() < until:
            stats = await self._get("/api/v1/stats")
            if stats is not None and not stats["open_items"] and not self._unknown(await self.listed()):
                return
            await asyncio.sleep(0.3)

    async def _name_sequences(self, until: float) -> None:
        for name, sequences in self._sequences.items():
            for sequence in sequences:
                view = None
                while view is None and time.monotonic() < until:
                    view = await self._get(f"/api/v1/work/by-sequence/{sequence}")
                    if view is None:
                        await asyncio.sleep(PAUSE_SECONDS)
                self._keep(name, view["work_id"] if view else f"sequence {sequence}")
        self._sequences.clear()

    def _unknown(self, listed: Mapping[str, Any]) -> int:
        return sum(
            work_id not in listed or listed[work_id]["status"] not in ENDED
            for ids in self.receipts.values()
            for work_id in ids
        )

    async def listed(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            page = await self._get(f"/api/v1/work?limit=500{cursor}")
            if page is None:
                return {}
            found.update((each["work_id"], each) for each in page["items"])
            if not page["cursor"]:
                return found
            cursor = f"&cursor={page['cursor']}"

    async def views(self) -> dict[str, dict[str, Any]]:
        """Every item there is, those with a receipt also asked for one by one: with their results."""
        found = await self.listed()
        ids = [work_id for told in self.receipts.values() for work_id in told]
        gate = asyncio.Semaphore(16)

        async def one(work_id: str) -> None:
            async with gate:
                view = await self._get(f"/api/v1/work/{work_id}")
                if view is not None:
                    found[work_id] = view

        await asyncio.gather(*(one(work_id) for work_id in ids))
        return found

    async def evidence(self) -> Evidence:
        """Ask for everything, kill the leader, and ask again: what has ended must not change."""
        first = await self.views()
        for work_id, view in first.items():
            if view["status"] in ENDED and view["status"] == "completed" and view["result"] is None:
                continue  # only listed: shown without its result
            if view["status"] in ENDED:
                self._seen.setdefault(work_id, view)
        for marshaling in self.stage.marshalings:
            if marshaling.alive():
                marshaling.kill()
                marshaling.start()
        await asyncio.to_thread(self.stage.wait_ready)
        await self._led()
        again = await self.views()
        return Evidence(
            names=self.names,
            receipts=self.receipts,
            before=self._seen,
            after=again,
            lines=self.lines.read(),
            mortal=self.stage.died(),
            poison=self.poison,
            results_go=self.results_go,
        )

    async def close(self) -> None:
        await self._http.aclose()
        if self._nats is not None:
            await self._nats.close()


async def _quiet(_: Exception) -> None:
    """Outages are what this is about."""
