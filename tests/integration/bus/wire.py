"""A wire between a client and a nats-server, for tests that damage it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65536


class Wire:
    """`url` leads through the wire. What is done to it concerns the connections that are there.

    While it `refuses`, it hangs up on new ones.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._calls: set[_Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.refuses = False

    async def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        call = _Call((reader, writer), to_server)
        self._calls.add(call)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):  # ended by `close`; asyncio's streams would log it
                await call.carry()
        finally:
            self._calls.discard(call)
            self._tasks.discard(task)

    def inject(self, garbage: bytes) -> None:
        """Make the server seem to have sent this."""
        for call in self._calls:
            call.client[1].write(garbage)

    def swallow(self) -> None:
        """Half-dead: both ends stay connected, and nothing arrives any more."""
        for call in self._calls:
            call.swallows = True

    def cut(self) -> None:
        for call in self._calls:
            call.client[1].transport.abort()

    def close(self) -> list[asyncio.Task[None]]:
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)


class _Call:
    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.client = client
        self.server = server
        self.swallows = False

    async def carry(self) -> None:
        there = asyncio.create_task(self._forward(self.client[0], self.server[1]))
        back = asyncio.create_task(self._forward(self.server[0], self.client[1]))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            for _, writer in (self.client, self.server):
                writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if not self.swallows:
                    writer.write(chunk)
                    await writer.drain()


@asynccontextmanager
async def wire_to(server_port: int) -> AsyncIterator[Wire]:
    wire = Wire(server_port)
    listening = await asyncio.start_server(wire.open, "127.0.0.1", 0)
    wire.url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        listening.close()
        await asyncio.gather(*wire.close(), return_exceptions=True)


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A server that accepts connections and never says a word."""
    silent: list[asyncio.StreamWriter] = []

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    listening = await asyncio.start_server(keep, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for writer in silent:
            writer.transport.abort()
