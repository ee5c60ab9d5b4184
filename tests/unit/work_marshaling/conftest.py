"""A queue in one process, on a bus in memory, with a clock that the test moves."""

from collections.abc import AsyncIterator

import pytest

from libs.common.bus.bus import Bus
from tests.unit.work_marshaling.house import House, Instance, Node


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def queue(house: House) -> AsyncIterator[Instance]:
    async with house.marshaling() as instance:
        yield instance


@pytest.fixture
async def bus(house: House) -> AsyncIterator[Bus]:
    async with house.bus("test") as connected:
        yield connected


@pytest.fixture
async def node(house: House, bus: Bus, queue: Instance) -> Node:
    opened = Node(house, bus, "n1")
    await opened.open()
    return opened
