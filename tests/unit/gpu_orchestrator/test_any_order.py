"""Whatever happens to the ledger, in whatever order: never more is claimed than there was, and no token comes twice."""

import asyncio
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.common.clock import ManualClock
from libs.common.contracts.gpu_orchestrator import (
    Commit,
    FitQuestion,
    GpuProcess,
    Release,
    Renew,
    Reservation,
    ReserveRequest,
)
from libs.common.errors import MeshError
from tests.unit.gpu_orchestrator.world import FREE_MB, World, idle, made_world

FREE_RAM_MB = 60_000
sizes = st.integers(1, FREE_MB + 500)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), sizes, st.integers(1, 2)),
        st.tuples(st.just("reserve the rest"), st.integers(0, 1), st.sampled_from([0, 0, 1])),
        st.tuples(st.just("reserve ram"), st.integers(1, 4), st.sampled_from([0, 1])),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("renew"), st.integers(0, 9)),
        st.tuples(st.just("commit"), st.integers(0, 9)),
        st.tuples(st.just("pass"), st.sampled_from([1, 200, 400])),
        st.tuples(st.just("stranger"), st.integers(0, 1), st.integers(0, FREE_MB)),
        st.tuples(st.just("ends")),
        st.tuples(st.just("restart")),
    ),
    max_size=25,
)


class Life:
    """Plays steps on a real journal, and checks after each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clock = ManualClock()
        self._strangers = [0, 0]
        self._starts = 1
        self.granted: list[Reservation] = []

    async def play(self, course: list[tuple[object, ...]]) -> None:
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(made_world(self._folder, clock=self._clock))
            for step in course:
                if step[0] == "restart":
                    before = self._open(world)
                    await stack.aclose()
                    world = await stack.enter_async_context(made_world(self._folder, clock=self._clock))
                    self._show(world)
                    assert self._open(world) == before
                else:
                    with suppress(MeshError):
                        await self._do(world, step)
                self._check(world)

    async def _do(self, world: World, step: tuple[object, ...]) -> None:
        orchestrator = world.orchestrator
        match step:
            case ("reserve", int(mb), int(count)):
                asked = ReserveRequest(required_mb=mb, gpu_count=count)
                await self._reserve(world, asked)
            case ("reserve the rest", int(gpu), int(more)):
                rest = FREE_MB - self._claimed(world)[gpu] - self._strangers[gpu] + more
                await self._reserve(world, ReserveRequest(required_mb=max(1, rest), gpu_indices=(gpu,)))
            case ("reserve ram", int(part), int(more)):
                await self._reserve_ram(world, part, more)
            case ("release", int(which)):
                await orchestrator.release(Release(reservation_id=self._pick(which)))
            case ("renew", int(which)):
                await orchestrator.renew(Renew(reservation_id=self._pick(which)))
            case ("commit", int(which)):
                await orchestrator.commit(Commit(reservation_id=self._pick(which), pid=42))
            case ("pass", int(seconds)):
                self._clock.advance(seconds)
                await orchestrator.refresh()
            case ("stranger", int(gpu), int(mb)):
                self._strangers[gpu] = mb
                self._show(world)
            case _:
                self._starts += 1
                world.processes.running[42] = self._starts
                await orchestrator.refresh()

    async def _reserve_ram(self, world: World, part: int, more: int) -> None:
        """A part of what is left of it, or a little more than there is."""
        rest = max(1, (FREE_RAM_MB - self._claimed_ram(world)) // part + more)
        self.granted.append(await world.orchestrator.reserve(ReserveRequest(gpu_count=0, ram_mb=rest)))

    def _claimed_ram(self, world: World) -> int:
        return sum(each.ram_mb for each in world.orchestrator.reservations(only_open=True).reservations)

    async def _reserve(self, world: World, asked: ReserveRequest) -> None:
        self.granted.append(await world.orchestrator.reserve(asked))
        self._must_have_fit(world)

    def _show(self, world: World) -> None:
        world.processes.running[42] = self._starts
        world.meters.states = tuple(
            idle(number, GpuProcess(pid=7, kind="compute", used_mb=mb)) for number, mb in enumerate(self._strangers)
        )

    def _pick(self, which: int) -> str:
        return self.granted[which % len(self.granted)].reservation_id if self.granted else "none"

    def _claimed(self, world: World) -> list[int]:
        held = world.orchestrator.reservations(only_open=True).reservations
        return [sum(each.required_mb for each in held if gpu in each.gpu_indices) for gpu in (0, 1)]

    def _must_have_fit(self, world: World) -> None:
        """Of the GPUs just granted: all claims beside what the stranger uses at this moment."""
        for gpu in self.granted[-1].gpu_indices:
            assert self._claimed(world)[gpu] + self._strangers[gpu] <= FREE_MB

    def _open(self, world: World) -> dict[str, int]:
        return {
            each.reservation_id: each.token for each in world.orchestrator.reservations(only_open=True).reservations
        }

    def _check(self, world: World) -> None:
        tokens = [each.token for each in self.granted]
        assert tokens == sorted(set(tokens))
        assert all(claimed <= FREE_MB for claimed in self._claimed(world))
        assert self._claimed_ram(world) <= FREE_RAM_MB


@settings(max_examples=40, deadline=None)
@given(steps)
@example([("reserve", 100, 1), ("release", 0), ("restart",), ("reserve", 100, 1)])
@example([("reserve", 100, 1), ("commit", 0), ("ends",), ("restart",), ("reserve the rest", 0, 1)])
def test_no_course_of_things_gives_more_than_there_is_or_a_token_twice(course: list[tuple[object, ...]]):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Life(Path(folder)).play(course))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_all_that_was_reserved_is_free_again_in_whatever_order_it_is_released(amounts: list[int], chance: object):
    async def play(folder: Path) -> None:
        async with made_world(folder) as world:
            held = [await world.orchestrator.reserve(ReserveRequest(required_mb=mb)) for mb in amounts]
            chance.shuffle(held)  # type: ignore[attr-defined]  # what hypothesis gives is no declared type
            for each in held:
                await world.orchestrator.release(Release(reservation_id=each.reservation_id))
            as_before = FitQuestion(required_mb=FREE_MB, gpu_count=2)
            assert (await world.orchestrator.can_fit(as_before)).fits
            assert world.meters.measured == 1  # so it is the ledger that gave it back, not a measurement
            states = (await world.orchestrator.states()).gpus
            assert [state.ledger.free_mb for state in states if state.ledger] == [FREE_MB] * 2

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))
