"""A lease has one holder at a time, and ends when its holder does."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import ManualClock
from libs.common.contracts.lease import Holding
from libs.common.contracts.streams import Bucket
from libs.common.errors import WrongRevision
from libs.common.lease.lease import Lease

BUCKET = Bucket(name="TEST", summary="")
SECONDS = 3


class House:
    def __init__(self, stack: AsyncExitStack) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(clock=self.clock)
        self._stack = stack

    async def bus(self, name: str) -> Bus:
        transport = await self._stack.enter_async_context(self.server.connect(name))
        await transport.ensure_bucket(BUCKET)
        return Bus(transport, name=name, observer=SilentObserver(), clock=self.clock)

    async def lease(self, holder: str, bus: Bus | None = None) -> Lease[Holding]:
        return Lease(
            bus=bus or await self.bus(holder),
            clock=self.clock,
            bucket=BUCKET,
            key="one",
            holder=holder,
            seconds=SECONDS,
            kind=Holding,
            tell=lambda written: Holding(holder=holder, written=written),
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def test_the_first_has_it_and_the_second_is_told_by_whom(house: House):
    first, second = await house.lease("a"), await house.lease("b")
    assert await first.seek() is None
    told = await second.seek()

    assert (first.holds(), second.holds()) == (True, False)
    assert told is not None
    assert told.holder == "a"


async def test_it_ends_when_it_is_not_renewed(house: House):
    first, second = await house.lease("a"), await house.lease("b")
    await first.seek()
    house.clock.advance(SECONDS - 1)
    await first.seek()
    house.clock.advance(SECONDS - 1)
    assert await second.seek() is not None
    house.clock.advance(1.5)

    assert not first.holds()
    assert await second.seek() is None
    assert second.holds()
    assert await first.seek() is not None


async def test_it_can_be_taken_from_one_holder_that_is_known_to_be_gone(house: House):
    first, second = await house.lease("a"), await house.lease("b")
    await first.seek()
    assert await second.seek(instead_of="c") is not None
    await second.seek(instead_of="a")
    assert second.holds()

    await first.seek()
    assert not first.holds()


async def test_one_that_is_given_back_is_free_at_once(house: House):
    first, second = await house.lease("a"), await house.lease("b")
    await first.seek()
    await first.release()
    await second.seek()

    assert (first.holds(), second.holds()) == (False, True)


async def test_of_two_that_seek_it_at_once_one_has_it(house: House):
    first, second = await house.lease("a"), await house.lease("b")
    bus = await house.bus("c")
    get = bus.get

    async def both_look_first(*asked: Any) -> Any:
        found = await get(*asked)
        await first.seek()
        return found

    bus.get = both_look_first  # type: ignore[method-assign]
    second = await house.lease("b", bus)
    await second.seek()

    assert (first.holds(), second.holds()) == (True, False)


async def test_a_write_whose_receipt_was_lost_is_known_again(house: House):
    bus = await house.bus("a")
    lease = await house.lease("a", bus)
    await lease.seek()
    put = bus.put

    async def lose_receipt(*values: Any, **named: Any) -> int:
        await put(*values, **named)
        raise WrongRevision("the retry of a write that had come through")

    bus.put = lose_receipt  # type: ignore[method-assign]
    house.clock.advance(SECONDS - 1)
    await lease.seek()
    house.clock.advance(SECONDS - 1)

    assert lease.holds()


async def test_what_is_no_lease_is_written_over(house: House):
    bus = await house.bus("stranger")
    async with house.server.connect("writer") as transport:
        await transport.put(BUCKET.name, "one", b"garbage", revision=0)
    lease = await house.lease("a", bus)
    await lease.seek()

    assert lease.holds()
