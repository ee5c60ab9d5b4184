"""Reserving memory on one node, and through it on another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.gpu_orchestrator import (
    RESERVE,
    Commit,
    FitQuestion,
    GpuProcess,
    GpuState,
    GpuStates,
    Leak,
    LedgerEntry,
    LedgerUse,
    Release,
    Renew,
    Reservation,
    ReservationState,
    ReserveRequest,
)
from libs.common.contracts.streams import GPU_RESERVATIONS
from libs.common.errors import Conflict, Forbidden, Malformed, NotFound
from libs.common.journal import journal_sqlite
from services.gpu_orchestrator import use_cases
from services.gpu_orchestrator.copying import read_copy
from services.gpu_orchestrator.views import shortened
from tests.disks import Disk, WithDisk
from tests.nodes import AT, gpu
from tests.unit.gpu_orchestrator.world import FREE_MB, World, idle, made_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made_world(tmp_path) as made:
        yield made


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(journal_sqlite, "os", WithDisk(disk))
    return disk


def wish(mb: int = 1000, **more: object) -> ReserveRequest:
    return ReserveRequest.model_validate({"required_mb": mb} | more)


async def free(world: World) -> list[int | None]:
    return [state.ledger.free_mb for state in (await world.orchestrator.states()).gpus if state.ledger]


async def state(world: World, held: Reservation) -> ReservationState:
    await world.orchestrator.refresh()
    return world.orchestrator.reservation(held.reservation_id).state


async def test_what_is_reserved_is_not_free_and_what_is_released_is(world: World):
    held = await world.orchestrator.reserve(wish(gpu_indices=[0, 1]))
    during = await free(world)
    await world.orchestrator.release(Release(reservation_id=held.reservation_id, token=held.token))

    assert (held.gpu_uuids, held.gpu_indices) == (("GPU-0", "GPU-1"), (0, 1))
    assert (during, await free(world)) == ([FREE_MB - 1000] * 2, [FREE_MB] * 2)


async def test_a_refusal_tells_what_is_in_the_way_and_changes_nothing(world: World):
    with pytest.raises(Conflict) as caught:
        await world.orchestrator.reserve(wish(FREE_MB + 1, gpu_count=2))

    assert [each["missing_mb"] for each in caught.value.details["shortfalls"]] == [1, 1]  # type: ignore[attr-defined]
    assert caught.value.details["would_fit_mb"] == FREE_MB
    assert (await free(world), world.eye.outcomes) == ([FREE_MB] * 2, ["refused"])


async def test_a_process_that_came_between_question_and_reservation_is_seen(world: World):
    fits = (await world.orchestrator.can_fit(FitQuestion(required_mb=20_000, gpu_indices=(0,)))).fits
    world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=15_000)), idle(1))

    with pytest.raises(Conflict):
        await world.orchestrator.reserve(wish(20_000, gpu_indices=[0]))
    assert fits


async def test_many_who_reserve_at_once_share_a_look_and_measure_nothing_anew(world: World):
    await world.orchestrator.refresh()
    await asyncio.gather(*(world.orchestrator.reserve(wish(10)) for _ in range(100)))

    assert (world.meters.measured, world.meters.looked) == (1, 2)  # the first one's, and that of all behind it


async def test_a_look_that_was_begun_before_somebody_asked_gives_him_nothing(world: World):
    await world.orchestrator.refresh()
    world.meters.sees.clear()
    world.meters.shows_begin = True
    first = asyncio.create_task(world.orchestrator.reserve(wish(1000, gpu_indices=[0])))
    await asyncio.sleep(0)
    world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=15_000)), idle(1))
    second = asyncio.create_task(world.orchestrator.reserve(wish(20_000, gpu_indices=[0])))
    while len(world.orchestrator.reservations(only_open=True).reservations) < 2:
        await asyncio.sleep(0)
    world.meters.sees.set()

    assert (await first).required_mb == 1000
    with pytest.raises(Conflict):
        await second


async def test_the_look_is_begun_in_the_step_that_claims(world: World):
    await world.orchestrator.refresh()
    seen: list[tuple[int, int]] = []
    original = world.meters.used_mb

    def used_mb() -> Awaitable[Mapping[str, int | None]]:
        asyncio.get_running_loop().call_soon(
            lambda: seen.append(
                (world.meters.looked, len(world.orchestrator.reservations(only_open=True).reservations))
            )
        )
        return original()

    world.meters.used_mb = used_mb  # type: ignore[method-assign]  # to look at the book behind that step
    await world.orchestrator.reserve(wish())

    assert seen == [(1, 1)]


async def test_what_grew_since_the_measurement_is_kept_from_others_without_measuring_anew(world: World):
    await world.orchestrator.refresh()
    world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=15_000)), idle(1))
    held = await world.orchestrator.reserve(wish(10_000))

    assert (held.gpu_uuids, world.meters.measured) == (("GPU-1",), 1)


async def test_what_a_look_shows_to_be_too_much_is_not_given_and_leaves_nothing_behind(tmp_path: Path):
    async with made_world(tmp_path) as world:
        await world.orchestrator.refresh()
        world.meters.sees.clear()
        asked = wish(20_000, gpu_indices=[0], reservation_id="mine")
        asking = [asyncio.create_task(world.orchestrator.reserve(asked)) for _ in range(2)]
        while not world.meters.looked:
            await asyncio.sleep(0)
        world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=15_000)), idle(1))
        world.meters.sees.set()
        refused = await asyncio.gather(*asking, return_exceptions=True)
        left = world.orchestrator.reservations(only_open=False).reservations
        other = await world.orchestrator.reserve(wish(gpu_indices=[1], reservation_id="mine"))

    assert ([type(each) for each in refused], left) == ([Conflict, Conflict], ())
    async with made_world(tmp_path) as again:
        kept = again.orchestrator.reservations(only_open=False).reservations
        assert ([each.token for each in kept], other.token > 1) == ([other.token], True)


async def test_who_goes_before_the_look_is_answered_leaves_nothing_behind(tmp_path: Path):
    async with made_world(tmp_path) as world:
        await world.orchestrator.refresh()
        world.meters.sees.clear()
        asking = asyncio.create_task(world.orchestrator.reserve(wish()))
        while not world.meters.looked:
            await asyncio.sleep(0)
        during = len(world.orchestrator.reservations(only_open=True).reservations)
        asking.cancel()
        await asyncio.wait({asking})
        world.meters.sees.set()

        assert (during, await free(world)) == (1, [FREE_MB] * 2)
    async with made_world(tmp_path) as again:
        assert again.orchestrator.reservations(only_open=False).reservations == ()


async def test_a_grant_waits_until_it_is_synced_and_a_release_only_until_it_is_written(world: World, disk: Disk):
    disk.let_go.clear()
    asking = asyncio.create_task(world.orchestrator.reserve(wish()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asking), 0.1)
    disk.let_go.set()
    held = await asking
    disk.let_go.clear()

    released = await asyncio.wait_for(world.orchestrator.release(Release(reservation_id=held.reservation_id)), 5)

    assert (released.state, disk.syncs) == (ReservationState.RELEASED, 1)
    disk.let_go.set()


async def test_what_was_given_up_since_the_measurement_is_given(world: World):
    world.meters.states = (idle(0, GpuProcess(pid=7, kind="compute", used_mb=15_000)),)
    await world.orchestrator.refresh()
    world.meters.states = (idle(0),)

    assert (await world.orchestrator.can_fit(FitQuestion(required_mb=20_000))).fits
    assert await world.orchestrator.reserve(wish(20_000))


async def test_where_a_look_tells_nothing_everything_is_measured(world: World):
    await world.orchestrator.refresh()
    world.meters.states = (idle(0), idle(1), idle(2))
    await world.orchestrator.reserve(wish(gpu_indices=[2]))

    assert world.meters.measured == 2


async def test_a_measurement_that_is_too_old_backs_nothing(world: World):
    await world.orchestrator.refresh()
    world.clock.advance(60)
    await world.orchestrator.reserve(wish())

    assert world.meters.measured == 2


async def test_two_hundred_at_once_get_what_there_is_and_not_more(world: World):
    results = await asyncio.gather(
        *(world.orchestrator.reserve(wish(3000)) for _ in range(200)), return_exceptions=True
    )
    granted = [result for result in results if isinstance(result, Reservation)]

    assert len(granted) == 2 * (FREE_MB // 3000)
    assert all(isinstance(result, (Reservation, Conflict)) for result in results)
    assert len({each.token for each in granted}) == len(granted)
    assert await free(world) == [FREE_MB % 3000] * 2


async def test_a_repeated_request_reserves_once_and_another_of_the_same_id_is_refused(world: World):
    one, other = await asyncio.gather(*(world.orchestrator.reserve(wish(reservation_id="a/1/n")) for _ in range(2)))

    assert one == other
    with pytest.raises(Conflict, match="taken"):
        await world.orchestrator.reserve(wish(2000, reservation_id="a/1/n"))


async def test_a_release_whose_asker_is_gone_holds_after_a_restart_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal_sqlite, "WRITES_PER_CHECKPOINT", 0)  # so that the journal's thread writes it
    async with made_world(tmp_path) as world:
        held = await world.orchestrator.reserve(wish())
        asking = asyncio.create_task(world.orchestrator.release(Release(reservation_id=held.reservation_id)))
        await asyncio.sleep(0)  # it has begun, and waits for the disk
        asking.cancel()
        with pytest.raises(Conflict, match="released"):
            await world.orchestrator.renew(Renew(reservation_id=held.reservation_id))
        assert asking.cancelled()
    async with made_world(tmp_path) as world:
        assert world.orchestrator.reservation(held.reservation_id).state == ReservationState.RELEASED


async def test_a_reservation_that_is_not_on_disk_yet_cannot_be_released_before_it(world: World):
    asking = asyncio.create_task(world.orchestrator.reserve(wish(reservation_id="mine")))
    while not world.orchestrator.reservations(only_open=True).reservations:
        await asyncio.sleep(0)

    released = await world.orchestrator.release(Release(reservation_id="mine"))

    assert (asking.done(), released.state) == (True, ReservationState.RELEASED)


async def test_a_reservation_that_nobody_commits_expires_and_one_that_is_renewed_does_not(world: World):
    lost, kept = [await world.orchestrator.reserve(wish()) for _ in range(2)]
    world.clock.advance(299)
    await world.orchestrator.renew(Renew(reservation_id=kept.reservation_id, token=kept.token))
    world.clock.advance(1)

    assert (await state(world, lost), await state(world, kept)) == (ReservationState.EXPIRED, ReservationState.HELD)


async def test_after_standing_still_owners_get_the_time_to_renew(tmp_path: Path):
    async with made_world(tmp_path, still_seconds=30) as world:
        held = await world.orchestrator.reserve(wish())
        world.clock.advance(1000)
        woken = await state(world, held)
        world.clock.advance(29)
        almost = await state(world, held)
        world.clock.advance(1)

        assert (woken, almost) == (ReservationState.HELD, ReservationState.HELD)
        assert await state(world, held) == ReservationState.EXPIRED


@pytest.mark.parametrize("asks", ["renew", "commit"])
async def test_the_first_who_asks_after_standing_still_is_not_too_late(tmp_path: Path, asks: str):
    async with made_world(tmp_path, still_seconds=30) as world:
        held = [await world.orchestrator.reserve(wish()) for _ in range(3)]
        world.clock.advance(1000)

        for each in held:
            if asks == "renew":
                told = await world.orchestrator.renew(Renew(reservation_id=each.reservation_id, token=each.token))
            else:
                told = await world.orchestrator.commit(Commit(reservation_id=each.reservation_id, pid=42))
            assert told.state == (ReservationState.HELD if asks == "renew" else ReservationState.COMMITTED)


async def test_who_is_late_by_himself_is_not_spared(tmp_path: Path):
    async with made_world(tmp_path, still_seconds=30) as world:
        held = await world.orchestrator.reserve(wish(timeout_seconds=20))
        world.clock.advance(25)

        with pytest.raises(Conflict, match="expired"):
            await world.orchestrator.renew(Renew(reservation_id=held.reservation_id))


async def test_a_committed_reservation_ends_with_its_process_and_not_before(world: World):
    held = await world.orchestrator.reserve(wish())
    await world.orchestrator.commit(Commit(reservation_id=held.reservation_id, token=held.token, pid=42))
    world.clock.advance(1e6)
    before = await state(world, held)
    world.processes.running[42] = 2  # another process under its number

    assert (before, await state(world, held)) == (ReservationState.COMMITTED, ReservationState.ENDED)
    assert await free(world) == [FREE_MB] * 2


async def test_a_process_that_would_hold_everything_is_refused_and_the_reservation_stays_as_it_was(world: World):
    world.processes.running[1], world.processes.obstacles[1] = 0, "is the first process"
    held = await world.orchestrator.reserve(wish())

    with pytest.raises(Malformed, match="process 1 is the first process; name the process that uses") as caught:
        await world.orchestrator.commit(Commit(reservation_id=held.reservation_id, pid=1))

    assert (caught.value.details["field"], await state(world, held)) == ("pid", ReservationState.HELD)


async def test_two_reservations_of_one_process_both_live_as_long_as_it(world: World):
    held = [await world.orchestrator.reserve(wish(gpu_indices=[number], ram_mb=10)) for number in range(2)]
    for each in held:
        await world.orchestrator.commit(Commit(reservation_id=each.reservation_id, pid=42))
    world.meters.states = tuple(idle(n, GpuProcess(pid=42, kind="compute", used_mb=700)) for n in range(2))

    assert [await state(world, each) for each in held] == [ReservationState.COMMITTED] * 2
    assert await free(world) == [FREE_MB - 1000] * 2

    world.processes.running.clear()
    assert [await state(world, each) for each in held] == [ReservationState.ENDED] * 2


async def test_more_reservations_than_are_kept_at_once_are_refused(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(use_cases, "MOST_OPEN", 2)
    held = [await world.orchestrator.reserve(wish(1)) for _ in range(2)]

    with pytest.raises(Conflict, match="2 reservations are open"):
        await world.orchestrator.reserve(wish(1))
    await world.orchestrator.release(Release(reservation_id=held[0].reservation_id))
    await world.orchestrator.reserve(wish(1))


async def test_the_copy_of_many_wordy_reservations_is_not_too_large_for_a_message(world: World):
    for number in range(800):
        name = f"{number}-".ljust(128, "x")
        await world.orchestrator.reserve(wish(1, gpu_indices=[0, 1], reservation_id=name, purpose="p" * 1024))

    await world.copying.copy()

    copy = await read_copy(world.bus, "n")
    assert copy.left_out == 800 - len(copy.reservations) > 0


def test_the_states_of_gpus_with_thousands_of_claims_are_not_too_large_for_a_message():
    uses = tuple(LedgerUse(reservation_id=f"{mb}-".ljust(128, "x"), claim_mb=mb) for mb in range(4096))
    leaks = tuple(
        Leak(pid=mb, command="c" * 1024, reservation_id="x" * 128, used_mb=mb, age_seconds=1) for mb in range(100)
    )
    states = tuple(GpuState(gpu=gpu(n), ledger=LedgerEntry(uses=uses, leaks=leaks)) for n in range(8))
    told = shortened(GpuStates(node_id="n", boot_id="b", at=AT, gpus=states))

    assert len(told.model_dump_json()) < 900_000
    for state in told.gpus:
        assert state.ledger is not None
        assert state.ledger.uses[0].claim_mb == 4095
        assert state.ledger.leaks[0].used_mb == 99


async def test_an_engine_that_outlives_its_reservation_is_told_as_leaked_and_its_memory_stays_protected(world: World):
    held = await world.orchestrator.reserve(wish(5000, gpu_indices=[0]))
    await world.orchestrator.commit(Commit(reservation_id=held.reservation_id, pid=42))
    world.meters.states = (idle(0, GpuProcess(pid=42, kind="compute", used_mb=5000)), idle(1))
    await world.orchestrator.refresh()
    await world.orchestrator.release(Release(reservation_id=held.reservation_id))
    await world.orchestrator.refresh()
    world.clock.advance(30)

    assert await free(world) == [FREE_MB - 5000, FREE_MB]
    assert world.eye.events == ["leaked"]


async def test_ram_alone_can_be_reserved_and_runs_out(world: World):
    await world.orchestrator.reserve(wish(0, gpu_count=0, ram_mb=50_000))

    with pytest.raises(Conflict, match="RAM"):
        await world.orchestrator.reserve(wish(ram_mb=20_000))
    assert await free(world) == [FREE_MB] * 2


async def test_after_a_restart_the_same_reservations_have_the_same_tokens(tmp_path: Path):
    clock = ManualClock()
    async with made_world(tmp_path, clock=clock) as world:
        held = await world.orchestrator.reserve(wish(gpu_indices=[0]))
        mine = await world.orchestrator.reserve(wish(gpu_indices=[1]))
        await world.orchestrator.commit(Commit(reservation_id=mine.reservation_id, pid=42))
    clock.advance(400)
    async with made_world(tmp_path, clock=clock) as again:
        states = [await state(again, held), await state(again, mine)]
        token = again.orchestrator.reservation(mine.reservation_id).token
        new = await again.orchestrator.reserve(wish())

    assert states == [ReservationState.EXPIRED, ReservationState.COMMITTED]
    assert (token, new.token > mine.token) == (mine.token, True)


async def test_after_a_boot_of_the_machine_nothing_is_reserved(tmp_path: Path):
    async with made_world(tmp_path) as world:
        held = await world.orchestrator.reserve(wish())
    async with made_world(tmp_path, machine_boot="next") as again:
        assert await state(again, held) == ReservationState.ENDED


async def test_a_request_that_names_another_node_is_answered_by_that_node(tmp_path: Path):
    server = MemoryServer(clock=ManualClock())
    async with made_world(tmp_path, server=server) as here, made_world(tmp_path, node_id="far", server=server) as far:
        held = await here.orchestrator.reserve(wish(node_id="far"))
        asked = Release(reservation_id=held.reservation_id, token=held.token)
        during = await free(far)
        gone = await here.orchestrator.release(asked, "far")

    assert (held.node_id, gone.state) == ("far", ReservationState.RELEASED)
    assert min(mb for mb in during if mb is not None) == FREE_MB - 1000


async def test_others_see_reservations_of_a_node_that_is_away(tmp_path: Path):
    server = MemoryServer(clock=ManualClock())
    async with made_world(tmp_path, server=server) as here:
        async with made_world(tmp_path, node_id="far.away", server=server) as far:
            held = await far.orchestrator.reserve(wish())
            await far.copying.copy()
        told = await here.orchestrator.reservations_of("far.away", only_open=True)
        with pytest.raises(NotFound):
            await here.orchestrator.reservations_of("stranger", only_open=True)

    assert (told.node_id, told.copied, told.reservations) == ("far.away", True, (held,))


async def test_the_copy_is_written_when_something_changed_and_again_after_it_got_lost(world: World):
    await world.orchestrator.reserve(wish())
    await world.copying.copy()
    first = await world.bus.get(GPU_RESERVATIONS, "n")
    await world.copying.copy()
    again = await world.bus.get(GPU_RESERVATIONS, "n")
    assert first is not None
    await world.bus.delete(GPU_RESERVATIONS, "n", revision=first.revision)
    await world.orchestrator.reserve(wish())
    await world.copying.copy()
    await world.copying.copy()

    copied = await read_copy(world.bus, "n")
    assert (first == again, len(copied.reservations)) == (True, 2)


async def test_a_copy_that_nats_lost_with_its_disk_is_written_again_although_nothing_changed(tmp_path: Path):
    server = MemoryServer(clock=ManualClock())
    async with made_world(tmp_path, server=server) as world:
        held = await world.orchestrator.reserve(wish())
        await world.copying.copy()

        server.stop()
        server.start(emptied=True)
        await world.copying.copy()
        await world.copying.copy()

        assert (await read_copy(world.bus, "n")).reservations == (held,)


async def test_a_reservation_is_made_over_nats_too(world: World):
    held = await world.bus.request(RESERVE, wish(), node_id="n")

    assert world.orchestrator.reservations(only_open=True).reservations == (held,)


async def test_strangers_and_unknown_things_are_refused_by_name(world: World):
    held = await world.orchestrator.reserve(wish())
    for refused, kind in (
        (world.orchestrator.release(Release(reservation_id=held.reservation_id, token=99)), Forbidden),
        (world.orchestrator.renew(Renew(reservation_id="none")), NotFound),
        (world.orchestrator.commit(Commit(reservation_id=held.reservation_id, pid=43)), Malformed),
        (world.orchestrator.reserve(wish(gpu_indices=[9])), Malformed),
        (world.orchestrator.reserve(wish(gpu_uuids=["GPU-9"])), Malformed),
    ):
        with pytest.raises(kind):
            await refused

    assert world.orchestrator.reservations(only_open=True).reservations == (held,)


@pytest.mark.parametrize(
    "body",
    [
        {"required_mb": -1},
        {"required_mb": 0},
        {"required_mb": 2**40},
        {"required_mb": 1, "gpu_indices": [0, 0]},
        {"required_mb": 1, "gpu_indices": [0], "gpu_uuids": ["GPU-0"]},
        {"required_mb": 1, "gpu_indices": [0], "gpu_count": 2},
        {"required_mb": 1, "timeout_seconds": 0},
        {"gpu_count": 0},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(body: dict[str, object]):
    with pytest.raises(ValidationError):
        ReserveRequest.model_validate(body)
