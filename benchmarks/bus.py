"""How much the bus costs beside bare nats-py: durable publishing and request/reply, medians over five runs.

    python -m benchmarks.bus

The floor is measured in the same run: a publisher of a few lines that gives the same guarantees (message id, bounded
window, waits for every receipt), and nats-py's own request. Both sides send the same bytes from the same number of
callers; the bus starts from a typed message and also keeps deadlines, sends again and counts.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import fmean, median

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.common.bus.bus import Bus
from libs.common.bus.nats.append import IN_FLIGHT
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.base import Call, Message, Topic
from libs.common.contracts.streams import MIB, Stream
from tests.nats_process import nats_process

RUNS = 5
TURNS = 4
CALLERS = 1024
REQUESTS = 2000
LEAST_SHARE = 0.60
MOST_TIMES = 1.5


class Note(Message):
    """About 300 bytes, as most messages of the mesh."""

    text: str
    number: int = 0


NOTE = Note(text="x" * 270)
BYTES = NOTE.model_dump_json().encode()
KEPT = Stream(name="BENCH", subjects=("bench.bus.v1", "bench.bare.v1"), max_bytes=4096 * MIB, summary="Measured.")
TOPIC = Topic(subject="bench.bus.v1", message=Note, owner="benchmarks", summary="Measured.", stream=KEPT.name)
CALL = Call(subject="bench.ask.v1", request=Note, reply=Note, owner="benchmarks", summary="Measured.")


class BarePublisher:
    """The least that waits for every receipt: one inbox, a window, a message id."""

    def __init__(self, client: Client, window: int) -> None:
        self._client = client
        self._window = asyncio.Semaphore(window)
        self._prefix = client.new_inbox() + "."
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._sent = 0

    async def start(self) -> None:
        await self._client.subscribe(self._prefix + "*", cb=self._receipt)

    async def publish(self, subject: str, payload: bytes, message_id: str) -> object:
        async with self._window:
            self._sent += 1
            number = str(self._sent)
            receipt = self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._client.publish(subject, payload, self._prefix + number, {"Nats-Msg-Id": message_id})
            return await receipt

    async def _receipt(self, message: Msg) -> None:
        answer = json.loads(message.data)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self._waiting.pop(message.subject[len(self._prefix) :]).set_result(answer["seq"])


async def messages_per_second(publish: Callable[[str], Awaitable[object]], count: int, prefix: str) -> float:
    numbers = iter(range(count))

    async def call() -> None:
        for number in numbers:
            await publish(f"{prefix}{number}")

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return count / (time.perf_counter() - started)


async def _microseconds(ask: Awaitable[object]) -> float:
    started = time.perf_counter()
    await ask
    return (time.perf_counter() - started) * 1e6


class Bench:
    """Both sides, connected to one server."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self._url = url

    async def open(self) -> "Bench":
        self.bus, answering = await self._bus("bench"), await self._bus("bench-answers")
        self.client, answering_client = await self._client(), await self._client()
        self.bare = BarePublisher(self.client, IN_FLIGHT)
        await self.bare.start()

        async def answer(question: Note) -> Note:
            return question

        async def bare_answer(message: Msg) -> None:
            await answering_client.publish(message.reply, message.data)

        await answering.serve(CALL, answer)
        await answering_client.subscribe("bench.bare_ask.v1", cb=bare_answer)
        await answering_client.flush()
        await answering_client.flush()
        return self

    async def _bus(self, name: str) -> Bus:
        transport = await self._stack.enter_async_context(connect(self._url, name=name))
        await transport.ensure_stream(KEPT)
        return Bus(transport, name=name, observer=SilentObserver(), clock=SystemClock())

    async def _client(self) -> Client:
        client = await nats.connect(self._url)
        self._stack.push_async_callback(client.close)
        return client

    async def publishing(self, count: int, run: int) -> tuple[float, float]:
        """Messages per second: the bus, bare. In turn, so that both see the same machine."""
        ours, bare = [], []
        for turn in range(TURNS):
            ours.append(await messages_per_second(self._append, count // TURNS, f"ours-{run}-{turn}-"))
            bare.append(await messages_per_second(self._publish, count // TURNS, f"bare-{run}-{turn}-"))
        return fmean(ours), fmean(bare)

    async def _append(self, message_id: str) -> None:
        await self.bus.append(TOPIC, NOTE, message_id=message_id)

    async def _publish(self, message_id: str) -> None:
        await self.bare.publish(KEPT.subjects[1], BYTES, message_id)

    async def asking(self) -> tuple[float, float]:
        """Microseconds at the median: the bus, bare. In turn, so that both see the same machine."""
        ours, bare = [], []
        for _ in range(REQUESTS):
            ours.append(await _microseconds(self.bus.request(CALL, NOTE)))
            bare.append(await _microseconds(self.client.request("bench.bare_ask.v1", BYTES, timeout=2)))
        return median(ours), median(bare)


def _verdict(what: str, unit: str, pairs: list[tuple[float, float]], bound: float, *, at_least: bool) -> bool:
    ours, bare = median(ours for ours, _ in pairs), median(bare for _, bare in pairs)
    ratio = median(ours / bare for ours, bare in pairs)
    held = ratio >= bound if at_least else ratio <= bound
    sign = "≥" if at_least else "≤"
    spread = f"{min(o / b for o, b in pairs):.2f} to {max(o / b for o, b in pairs):.2f}"
    print(
        f"{what:42} {ours:9,.0f} {unit:4} bare {bare:9,.0f} {unit:4} ratio {ratio:.2f} [{spread}] "
        f"(wanted {sign} {bound:.2f}: {'held' if held else 'MISSED'})"
    )
    return held


async def measure(sync_interval: str, count: int) -> bool:
    with nats_process(sync_interval=sync_interval) as server:
        async with AsyncExitStack() as stack:
            bench = await Bench(stack, server.url).open()
            await bench.publishing(count // 10, -1)
            publishing = [await bench.publishing(count, run) for run in range(RUNS)]
            asking = [await bench.asking() for _ in range(RUNS)]
    held = _verdict(f"durable publish, sync {sync_interval}", "/s", publishing, LEAST_SHARE, at_least=True)
    return _verdict(f"request/reply p50, sync {sync_interval}", "µs", asking, MOST_TIMES, at_least=False) and held


async def main() -> int:
    always = await measure("always", 10_000)
    default = await measure("2m", 60_000)
    return 0 if always and default else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
