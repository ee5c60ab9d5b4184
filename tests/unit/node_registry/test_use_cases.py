"""The registry as others see it, with a bus and a clock of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.node_registry import (
    DISCOVER,
    HEARTBEAT,
    STATUS,
    Discover,
    NodeQuery,
    NodeState,
    NodeStatus,
    NodeView,
    NodeWorkload,
)
from libs.common.errors import Disconnected, Malformed, NotFound
from services.node_registry.use_cases import NodeRegistry
from tests.nodes import AT, announced, beat, gpu, gpu_beat
from tests.recording import RecordingObserver
from tests.unit.node_registry.house import Counts, Parts, one_registry


@dataclass
class World:
    registry: NodeRegistry
    clock: ManualClock
    server: MemoryServer
    bus: Bus
    counts: Counts
    parts: Parts
    questions: "asyncio.Queue[Discover]" = field(default_factory=asyncio.Queue)
    told: "asyncio.Queue[NodeStatus]" = field(default_factory=asyncio.Queue)

    async def pass_time(self, seconds: float) -> None:
        """In steps of half a second, as the service does."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            await (self.parts.step if self.bus.problem() is None else self.registry.watch)()

    async def state(self, node_id: str = "node-1") -> NodeState:
        return (await self.registry.get(node_id)).state


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    server = MemoryServer(clock=clock)
    async with server.connect("observer") as transport:
        bus = Bus(transport, name="observer", observer=RecordingObserver(), clock=clock)
        questions: asyncio.Queue[Discover] = asyncio.Queue()
        told: asyncio.Queue[NodeStatus] = asyncio.Queue()
        await bus.subscribe(DISCOVER, questions.put)
        await bus.subscribe(STATUS, told.put)
        async with one_registry(server, clock) as parts:
            yield World(parts.registry, clock, server, parts.bus, parts.counts, parts, questions, told)


async def test_at_its_start_it_asks_everybody(world: World):
    question = await asyncio.wait_for(world.questions.get(), 1)

    assert question.asked_by == "node_registry"


async def test_a_node_that_announced_itself_is_listed_as_it_is(world: World):
    await world.registry.hear_announcement(announced("node-1", gpu(0)))
    await world.registry.hear_heartbeat(beat(load_ratio=0.5, memory_available_mb=123, gpus=(gpu_beat(vram_free_mb=7),)))

    node = await world.registry.get("node-1")

    assert (node.state, node.load_ratio, node.memory_available_mb) == (NodeState.ONLINE, 0.5, 123)
    assert node.gpus[0].vram_free_mb == 7
    assert node.inventory.gpus == (gpu(0),)


async def test_a_node_that_falls_silent_is_told_to_everybody_with_the_reason(world: World):
    await world.registry.hear_announcement(announced())
    await world.pass_time(30.0)

    told = [await asyncio.wait_for(world.told.get(), 1) for _ in range(3)]

    assert [(status.previous, status.state) for status in told] == [
        (None, NodeState.ONLINE),
        (NodeState.ONLINE, NodeState.SUSPECT),
        (NodeState.SUSPECT, NodeState.OFFLINE),
    ]
    assert told[1].reason == "silent for 15 s"


async def test_it_is_suspect_and_offline_exactly_when_it_should_be(world: World):
    await world.registry.hear_announcement(announced())

    await world.pass_time(14.5)
    assert await world.state() is NodeState.ONLINE
    await world.pass_time(0.5)
    assert await world.state() is NodeState.SUSPECT
    await world.pass_time(14.5)
    assert await world.state() is NodeState.SUSPECT
    await world.pass_time(0.5)
    assert await world.state() is NodeState.OFFLINE


async def test_a_heartbeat_brings_it_back(world: World):
    await world.registry.hear_announcement(announced())
    await world.pass_time(60.0)

    await world.registry.hear_heartbeat(beat(sequence=2))

    assert await world.state() is NodeState.ONLINE


async def test_an_outage_of_nats_declares_nobody_dead(world: World):
    await world.registry.hear_announcement(announced())
    world.server.stop()
    await world.pass_time(300.0)
    world.server.start()
    await world.pass_time(10.0)

    assert await world.state() is NodeState.ONLINE


async def test_after_an_outage_everybody_is_asked_again(world: World):
    await world.pass_time(10.0)
    world.server.stop()
    await world.pass_time(10.0)
    world.server.start()
    await world.pass_time(10.0)

    for _ in range(2):
        await asyncio.wait_for(world.questions.get(), 1)
    assert world.questions.empty()


async def test_a_stranger_that_beats_makes_it_ask_but_not_all_the_time(world: World):
    for sequence in range(1, 20):
        await world.registry.hear_heartbeat(beat("stranger", sequence))
        await world.pass_time(1.0)

    for _ in range(4):
        await asyncio.wait_for(world.questions.get(), 1)
    assert world.questions.empty()
    with pytest.raises(NotFound):
        await world.registry.get("stranger")


async def test_what_runs_on_a_node_is_remembered_even_if_it_is_heard_first(world: World):
    await world.registry.hear_workload(NodeWorkload(node_id="node-1", boot_id="b", at=AT, slots=4, free_slots=3))
    await world.registry.hear_announcement(announced())

    assert (await world.registry.get("node-1")).free_slots == 3


async def test_an_agents_word_is_no_sign_of_life(world: World):
    await world.registry.hear_announcement(announced())
    for _ in range(6):
        await world.pass_time(5.0)
        await world.registry.hear_workload(NodeWorkload(node_id="node-1", boot_id="b", at=AT, slots=4, free_slots=3))

    assert await world.state() is NodeState.OFFLINE


async def test_an_old_heartbeat_that_comes_late_does_not_replace_a_newer_one(world: World):
    await world.registry.hear_announcement(announced())
    await world.registry.hear_heartbeat(beat(sequence=5, load_ratio=0.5))
    await world.registry.hear_heartbeat(beat(sequence=4, load_ratio=0.1))

    assert (await world.registry.get("node-1")).load_ratio == 0.5


async def test_a_second_machine_with_the_same_id_does_not_overwrite_the_first(world: World):
    await world.registry.hear_announcement(announced("node-1", boot_id="first"))
    await world.registry.hear_announcement(announced("node-1", gpu(0), boot_id="second"))
    await world.registry.hear_announcement(announced("node-1", boot_id="first"))

    node = await world.registry.get("node-1")

    assert node.boot_id == "second"
    assert node.inventory.gpus == (gpu(0),)
    assert node.conflict is not None
    assert world.counts.heard_kinds["conflict"] == 1


async def test_mass_silence_is_shown_and_nobody_is_dead(world: World):
    for number in range(6):
        await world.registry.hear_announcement(announced(f"node-{number}"))
    await world.pass_time(120.0)

    assert world.counts.now == {NodeState.SUSPECT: 6}
    assert world.counts.mass


async def test_pages_hold_every_node_once(world: World):
    for number in range(25):
        await world.registry.hear_announcement(announced(f"node-{number:02}"))

    seen: list[str] = []
    after: str | None = None
    while True:
        page = (await world.registry.query(NodeQuery(limit=10, after=after))).read()
        seen.extend(node.node_id for node in page.nodes)
        after = page.next_after
        assert page.total == 25
        if after is None:
            break

    assert seen == [f"node-{number:02}" for number in range(25)]


async def test_nodes_are_found_in_the_order_that_is_asked_for(world: World):
    for number, free in enumerate((300, None, 100, 200)):
        await world.registry.hear_announcement(announced(f"node-{number}", gpu(number, vram_free_mb=free)))

    found = (await world.registry.query(NodeQuery(sort="-free_vram_mb"))).read()

    assert [node.node_id for node in found.nodes] == ["node-0", "node-3", "node-2", "node-1"]


async def test_with_explain_every_other_node_says_why_not(world: World):
    await world.registry.hear_announcement(announced("bare"))
    await world.registry.hear_announcement(announced("rich", gpu(0)))

    found = (await world.registry.query(NodeQuery(requires_gpu=True, explain=True))).read()

    assert [node.node_id for node in found.nodes] == ["rich"]
    assert found.excluded is not None
    assert found.excluded[0].node_id == "bare"
    assert found.excluded[0].reasons == ("requires_gpu: it has no GPU that works",)


async def test_pages_cannot_be_told_in_another_order(world: World):
    with pytest.raises(Malformed, match="after"):
        await world.registry.query(NodeQuery(after="node-1", sort="tier"))


async def test_the_watch_says_when_it_cannot_ask(world: World):
    await world.registry.hear_heartbeat(beat("stranger"))
    await world.pass_time(5.0)
    await world.registry.hear_heartbeat(beat("stranger", 2))

    async def refuse(*_: object) -> None:
        raise Disconnected("away")

    world.bus.publish = refuse  # type: ignore[method-assign]  # the connection breaks between the look and the question
    world.clock.advance(5.0)
    with pytest.raises(Disconnected):
        await world.registry.watch()


async def test_a_heartbeat_that_still_waits_to_be_heard_counts(world: World):
    await world.registry.hear_announcement(announced("node-1"))
    await world.pass_time(14)
    world.clock.advance(1)
    await world.bus.publish(HEARTBEAT, beat())

    await world.registry.watch()

    assert await world.state() is NodeState.ONLINE


async def test_what_is_told_of_a_node_is_whole(world: World):
    full = announced("node-1", gpu(0), gpu(1), labels={"room": 'cellar "1"'})
    await world.registry.hear_announcement(full)
    await world.registry.hear_heartbeat(beat(load_ratio=0.5, gpus=(gpu_beat(0), gpu_beat(1, healthy=False))))

    written = (await world.registry.query(NodeQuery())).json
    (told,) = json.loads(written)["nodes"]

    assert set(told) == set(NodeView.model_fields)
    assert told["inventory"] == full.inventory.model_dump(mode="json")
    assert [each["healthy"] for each in told["gpus"]] == [True, False]


async def test_an_announcement_is_newer_than_the_heartbeat_before_it(world: World):
    await world.registry.hear_announcement(announced("node-1", gpu(0)))
    await world.registry.hear_heartbeat(beat(gpus=(gpu_beat(0),)))
    await world.registry.hear_announcement(announced("node-1", gpu(0, healthy=False, problem="GPU is lost")))

    found = (await world.registry.query(NodeQuery(requires_gpu=True))).read()

    assert found.total == 0
