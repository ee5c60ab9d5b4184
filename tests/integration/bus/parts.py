"""What the tests of the NATS transport share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from libs.common.bus.nats.link import Timing
from libs.common.bus.nats.transport import NatsTransport
from libs.common.bus.transport import Endpoint, Incoming
from libs.common.contracts.streams import MIB, Bucket, Stream

WORKS_AGAIN_SECONDS = 2.0
HASTY = Timing(watchdog=0.2, silence=0.3, publish_patience=0.5)
NUMBERS = Stream(name="NUMBERS", subjects=("test.numbers.v1",), max_bytes=512 * MIB, summary="Numbers.")
LAMPS = Bucket(name="lamps", summary="Lamps.")


def numbered(number: int) -> bytes:
    return str(number).encode()


async def until(true: Callable[[], object], within: float = 10.0) -> None:
    """Wait for something that only a look can tell."""
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.005)


async def echo_through(transport: NatsTransport, subject: str) -> None:
    async def answer(incoming: Incoming) -> None:
        assert incoming.reply is not None
        await transport.publish(incoming.reply, incoming.payload, {})

    await transport.serve(Endpoint(name="echo", subject=subject, group="echoes"), answer)


async def ask(transport: NatsTransport, subject: str, payload: bytes = b"?", timeout: float = 2.0) -> bytes:
    return (await transport.request(subject, payload, {}, timeout=timeout)).payload


async def append(transport: NatsTransport, number: int, timeout: float = 10.0) -> int:
    receipt = await transport.append(
        NUMBERS.subjects[0], numbered(number), {}, message_id=f"number-{number}", timeout=timeout
    )
    return receipt.sequence


async def everything_kept(transport: NatsTransport) -> list[bytes]:
    """Every payload of the stream, in order."""
    last = (await transport.stream_state(NUMBERS.name)).last_sequence
    payloads: list[bytes] = []
    async with aclosing(cast(Any, transport.read(NUMBERS.name, after=0))) as batches:
        while len(payloads) < last:
            payloads += [stored.payload for stored in await asyncio.wait_for(anext(batches), 10)]
    return payloads


@asynccontextmanager
async def in_background(*coroutines: Any) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Run them beside the test; what they raise fails it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
        for task in tasks:
            assert not task.done() or task.exception() is None, task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
