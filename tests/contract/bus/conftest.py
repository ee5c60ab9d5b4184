"""The same tests over both transports: what services rely on holds in memory as on a real nats-server."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest

from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.nats.transport import connect as connect_nats
from libs.common.bus.transport import Transport
from libs.common.clock import SystemClock
from tests.contract.bus.parts import Mesh
from tests.nats_process import NatsProcess, nats_process


@pytest.fixture(scope="session")
def contract_nats() -> Iterator[NatsProcess]:
    """The server of the contract tests: they all leave it running, and use names of their own."""
    with nats_process() as server:
        yield server


@pytest.fixture(params=["memory", "nats"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    connect: Callable[[str], AbstractAsyncContextManager[Transport]]
    if request.param == "memory":
        connect = MemoryServer(clock=SystemClock()).connect
    else:
        url = request.getfixturevalue("contract_nats").url

        def connect(name: str) -> AbstractAsyncContextManager[Transport]:
            return connect_nats(url, name=name)

    async with AsyncExitStack() as stack:
        yield Mesh(connect, stack)
