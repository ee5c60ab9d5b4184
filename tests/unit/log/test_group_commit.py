"""What gathers while a write is on its way goes with the next one."""

import asyncio
from collections.abc import Sequence

import pytest

from libs.common.errors import Unavailable
from libs.common.log.group_commit import GroupCommit


class Disk:
    """Writes when a test lets it."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.open = asyncio.Event()

    async def write(self, steps: Sequence[str]) -> None:
        await self.open.wait()
        self.written.append(list(steps))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_gathers_during_a_write_is_the_next_one():
    disk, commit = Disk(), GroupCommit[str]()
    commit.add("a", 1)
    running = asyncio.create_task(commit.run(disk.write))
    await turns()
    commit.add("b", 1)
    commit.add("c", 1)
    disk.open.set()
    await commit.reached(3)
    running.cancel()

    assert disk.written == [["a"], ["b", "c"]]


async def test_a_write_is_bounded_and_a_heavy_step_goes_alone():
    disk, commit = Disk(), GroupCommit[str](most_bytes=10)
    disk.open.set()
    for step, weight in (("a", 6), ("b", 6), ("heavy", 99), ("c", 5), ("d", 5)):
        commit.add(step, weight)
    running = asyncio.create_task(commit.run(disk.write))
    await commit.reached(5)
    running.cancel()

    assert disk.written == [["a"], ["b"], ["heavy"], ["c", "d"]]


async def test_nobody_is_told_before_it_is_written():
    disk, commit = Disk(), GroupCommit[str]()
    position = commit.add("a", 1)
    running = asyncio.create_task(commit.run(disk.write))
    waiting = asyncio.create_task(commit.reached(position))
    await turns()
    assert not waiting.done()

    disk.open.set()
    await waiting
    running.cancel()
    assert commit.written == 1


async def test_who_waits_is_told_when_writing_ends():
    async def fail(steps: Sequence[str]) -> None:
        raise ValueError("broken")

    commit = GroupCommit[str]()
    position = commit.add("a", 1)
    waiting = asyncio.create_task(commit.reached(position))
    await turns()
    with pytest.raises(ValueError, match="broken"):
        await commit.run(fail)

    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await commit.reached(position)


async def test_between_runs_after_every_write():
    disk, commit = Disk(), GroupCommit[str](most_steps=1)
    disk.open.set()
    seen: list[int] = []

    async def between() -> None:
        seen.append(commit.written)

    for step in "abc":
        commit.add(step, 1)
    running = asyncio.create_task(commit.run(disk.write, between))
    await commit.reached(3)
    await turns()
    running.cancel()

    assert seen == [1, 2, 3]
