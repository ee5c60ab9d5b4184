"""The detector as others hear it, on a machine of the test's own making."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import (
    ANNOUNCE,
    HEARTBEAT,
    Discover,
    Gpu,
    Inventory,
    NodeAnnounced,
    NodeHeartbeat,
    Problem,
    Tier,
)
from libs.common.errors import Disconnected
from services.resource_detector.model import Identity, Pulse
from services.resource_detector.nats_api import open_door
from services.resource_detector.use_cases import ResourceDetector
from tests.nodes import gpu, inventory
from tests.recording import RecordingObserver


@dataclass
class MadeUpMachine:
    """Has what the test says."""

    now: Inventory = field(default_factory=inventory)
    looks: list[bool] = field(default_factory=list)

    async def inventory(self, *, look_again: bool = False) -> Inventory:
        self.looks.append(look_again)
        return self.now

    async def pulse(self, *, threads: int) -> Pulse:
        return Pulse(load_ratio=1 / threads, memory_available_mb=5, gpus=self.now.gpus)

    def gets(self, *gpus: Gpu) -> None:
        self.now = inventory(*gpus)


class Silent:
    def inventory(self, inventory: Inventory) -> None: ...
    def pulse(self, pulse: Pulse) -> None: ...
    def told(self, kind: str) -> None: ...


@dataclass
class World:
    detector: ResourceDetector
    machine: MadeUpMachine
    server: MemoryServer
    bus: Bus
    announced: "asyncio.Queue[NodeAnnounced]" = field(default_factory=asyncio.Queue)
    beats: "asyncio.Queue[NodeHeartbeat]" = field(default_factory=asyncio.Queue)

    async def announcement(self) -> NodeAnnounced:
        return await asyncio.wait_for(self.announced.get(), 1)

    async def beat(self) -> NodeHeartbeat:
        return await asyncio.wait_for(self.beats.get(), 1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    server = MemoryServer(clock=clock)
    machine = MadeUpMachine()
    identity = Identity(node_id="n", boot_id="b", heartbeat_seconds=7.0, labels={"room": "cellar"})
    async with server.connect("detector") as transport, server.connect("listener") as other:
        bus = Bus(transport, name="resource_detector", observer=RecordingObserver(), clock=clock)
        detector = ResourceDetector(identity=identity, probes=machine, bus=bus, clock=clock, observer=Silent())
        made = World(detector, machine, server, bus)
        listener = Bus(other, name="listener", observer=RecordingObserver(), clock=clock)
        await listener.subscribe(ANNOUNCE, made.announced.put)
        await listener.subscribe(HEARTBEAT, made.beats.put)
        yield made


async def test_it_announces_what_the_machine_has_and_why_it_is_of_its_tier(world: World):
    world.machine.gets(gpu(0))

    await world.detector.announce()

    told = await world.announcement()
    assert (told.node_id, told.boot_id, told.heartbeat_seconds, told.labels) == ("n", "b", 7.0, {"room": "cellar"})
    assert (told.tier, told.inventory) == (Tier.GPU_PEER, world.machine.now)
    assert "RTX 4090" in told.tier_reasons[0]


async def test_heartbeats_are_counted_from_one(world: World):
    for _ in range(3):
        await world.detector.beat()

    assert [(await world.beat()).sequence for _ in range(3)] == [1, 2, 3]


async def test_the_load_is_told_over_the_processors_there_are(world: World):
    await world.detector.announce()
    await world.detector.beat()

    assert (await world.beat()).load_ratio == 1 / 16


async def test_a_gpu_that_breaks_is_announced_with_the_next_heartbeat(world: World):
    world.machine.gets(gpu(0), gpu(1))
    await world.detector.announce()
    await world.announcement()
    world.machine.gets(gpu(0), gpu(1, healthy=False, problem="Xid 79"))

    await world.detector.beat()

    assert [each.healthy for each in (await world.beat()).gpus] == [True, False]
    assert (await world.announcement()).inventory.gpus[1].problem == "Xid 79"


async def test_a_gpu_that_vanished_stays_announced_as_broken(world: World):
    world.machine.gets(gpu(0), gpu(1))
    await world.detector.announce()
    await world.announcement()
    world.machine.gets(gpu(0))

    await world.detector.beat()
    await world.detector.beat()

    gone = (await world.announcement()).inventory.gpus[1]
    assert (gone.uuid, gone.healthy, gone.problem) == ("GPU-1", False, "it is not there any more")
    assert world.announced.empty()


async def test_a_gpu_that_comes_back_is_announced_as_healthy(world: World):
    world.machine.gets(gpu(0))
    await world.detector.announce()
    world.machine.gets()
    await world.detector.beat()
    world.machine.gets(gpu(0))
    await world.detector.beat()

    told = [await world.announcement() for _ in range(3)]
    assert [each.inventory.gpus[0].healthy for each in told] == [True, False, True]


async def test_nothing_new_is_announced_by_a_refresh_without_change(world: World):
    await world.detector.announce()
    await world.announcement()

    await world.detector.refresh()
    assert world.machine.looks == [False, True]
    world.machine.gets(gpu(0))
    await world.detector.refresh()

    assert len((await world.announcement()).inventory.gpus) == 1
    assert world.announced.empty()


async def test_who_asks_everybody_gets_an_announcement(world: World):
    await open_door(world.detector, world.bus)

    await world.detector.answer_discovery(Discover(asked_by="test"))

    assert (await world.announcement()).node_id == "n"


async def test_what_could_not_be_read_is_told(world: World):
    world.machine.now = inventory(problems=(Problem(source="nvidia", message="broken"),))

    await world.detector.announce()

    assert (await world.announcement()).inventory.problems[0].source == "nvidia"
    assert (await world.detector.platform()).problems[0].message == "broken"


async def test_while_nats_is_away_it_says_so_and_goes_on_afterwards(world: World):
    world.server.stop()
    with pytest.raises(Disconnected):
        await world.detector.beat()
    world.server.start()

    await world.detector.beat()

    assert (await world.beat()).sequence == 2
