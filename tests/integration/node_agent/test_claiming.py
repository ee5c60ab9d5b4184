"""The agent's claims, in a real ledger."""

from pathlib import Path

import pytest

from libs.common.bus.bus import Bus
from libs.common.contracts.gpu_orchestrator import Reservation
from libs.common.errors import Conflict, MeshError, NobodyAnswers, NotFound
from services.node_agent.claiming import Claiming
from services.node_agent.claims import Wanted
from tests.unit.gpu_orchestrator.world import World, made_world

FREE_MB = 60_000
PID = 42


def wanted(claim_id: str = "engine-1/a", ram_mb: int = 1000) -> Wanted:
    return Wanted(claim_id=claim_id, ram_mb=ram_mb, purpose="a test")


def open_ones(world: World) -> tuple[Reservation, ...]:
    return world.orchestrator.reservations(only_open=True).reservations


@pytest.fixture
async def world(tmp_path: Path):
    async with made_world(tmp_path) as world:
        yield world


def claiming(bus: Bus) -> Claiming:
    return Claiming(bus, node_id="n")


async def test_what_is_claimed_is_not_free_until_it_is_released(world: World):
    claims = claiming(world.bus)

    await claims.reserve(wanted())
    await claims.commit("engine-1/a", pid=PID)
    assert [(each.ram_mb, each.pid, each.owner) for each in open_ones(world)] == [(1000, PID, "node_agent")]

    await claims.release("engine-1/a")
    assert open_ones(world) == ()


async def test_what_does_not_fit_is_refused_in_the_ledgers_words(world: World):
    with pytest.raises(Conflict, match=f"{FREE_MB + 1} MiB of RAM are wanted and {FREE_MB} MiB free"):
        await claiming(world.bus).reserve(wanted(ram_mb=FREE_MB + 1))


async def test_the_same_claim_again_is_one(world: World):
    for _ in range(2):
        await claiming(world.bus).reserve(wanted())
        await claiming(world.bus).commit("engine-1/a", pid=PID)

    assert len(open_ones(world)) == 1


@pytest.mark.parametrize("ended", [True, False])
async def test_what_is_not_open_is_not_committed_and_said_to_be_so(world: World, ended: bool):
    claims = claiming(world.bus)
    if ended:
        await claims.reserve(wanted())
        await claims.release("engine-1/a")

    with pytest.raises(MeshError) as refused:
        await claims.commit("engine-1/a", pid=PID)
    assert isinstance(refused.value, Conflict if ended else NotFound)


async def test_releasing_what_is_not_there_or_where_nobody_answers_is_no_fault(world: World):
    await claiming(world.bus).release("nothing")
    await Claiming(world.bus, node_id="elsewhere").release("nothing")

    with pytest.raises(NobodyAnswers):
        await Claiming(world.bus, node_id="elsewhere").reserve(wanted())
