"""What the contract tests of the bus stand on."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from libs.common.bus.bus import Bus
from libs.common.bus.transport import Transport
from libs.common.clock import SystemClock
from libs.common.contracts.base import Call, Message, Topic
from libs.common.contracts.streams import Bucket, Stream
from tests.recording import RecordingObserver

T = TypeVar("T")
SOON = 5.0


class Note(Message):
    text: str
    number: int = 0


class Answer(Message):
    text: str


class Mesh:
    """Connections to one server, and contracts that no other test uses."""

    def __init__(self, connect: Callable[[str], AbstractAsyncContextManager[Transport]], stack: AsyncExitStack) -> None:
        self._connect = connect
        self._stack = stack
        self._prefix = f"t{uuid.uuid4().hex[:12]}"

    async def transport(self, name: str = "someone") -> Transport:
        return await self._stack.enter_async_context(self._connect(name))

    async def bus(self, name: str = "someone", observer: RecordingObserver | None = None) -> Bus:
        observer = RecordingObserver() if observer is None else observer
        return Bus(await self.transport(name), name=name, observer=observer, clock=SystemClock())

    async def declare(self, stream: Stream) -> Stream:
        await (await self.transport("declares")).ensure_stream(stream)
        return stream

    async def declare_bucket(self, bucket: Bucket) -> Bucket:
        await (await self.transport("declares")).ensure_bucket(bucket)
        return bucket

    def subject(self, word: str = "notes") -> str:
        return f"{self._prefix}.{word}.v1"

    def topic(self, word: str = "notes") -> Topic[Note]:
        return Topic(
            subject=self.subject(word),
            message=Note,
            owner="tests",
            summary="A note.",
            stream=f"{self._prefix}_KEPT",
        )

    def call(self, word: str = "ask", *, per_node: bool = False) -> Call[Note, Answer]:
        return Call(
            subject=self.subject(word),
            request=Note,
            reply=Answer,
            owner="tests",
            summary="A question.",
            per_node=per_node,
        )

    def stream(self, *words: str, name: str = "KEPT", **options: Any) -> Stream:
        subjects = tuple(self.subject(word) for word in words or ("notes",))
        options.setdefault("max_bytes", 1024 * 1024)
        return Stream(name=f"{self._prefix}_{name}", subjects=subjects, summary="Kept.", **options)

    def durable(self) -> str:
        """A consumer's name of this test's own, also on a stream that it shares with others."""
        return f"{self._prefix}_reader"

    def bucket(self, name: str = "things") -> Bucket:
        return Bucket(name=f"{self._prefix}_{name}", summary="Things.", max_bytes=1024 * 1024)


class Heard:
    """What a handler was given, to be waited for."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, thing: Any) -> None:
        self._queue.put_nowait(thing)

    async def next(self) -> Any:
        return await soon(self._queue.get())

    async def texts(self, count: int) -> list[str]:
        return [(await self.next()).text for _ in range(count)]

    @property
    def empty(self) -> bool:
        return self._queue.empty()


async def until(condition: Callable[[], bool]) -> None:
    """For what can only be looked at, as what an observer has counted."""
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.005)


async def soon(wait: Awaitable[T]) -> T:
    return await asyncio.wait_for(wait, SOON)
