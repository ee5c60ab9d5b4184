"""What people tell the registry, and that it is not forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.node_administration import DRAIN, DrainNode, NodeRegistration, RestHeartbeat
from libs.common.contracts.node_registry import NodeQuery, NodeState
from libs.common.errors import Conflict, Malformed, NotFound, Unavailable
from services.node_registry.administration import Administration
from services.node_registry.use_cases import NodeRegistry
from tests.nodes import announced
from tests.unit.node_registry.house import one_registry, settled, until


class Registries:
    """Several registries on one server, as in a mesh with more than one."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(clock=self.clock)

    @asynccontextmanager
    async def one(self, **changes: Any) -> AsyncIterator[tuple[NodeRegistry, Administration, Bus]]:
        async with one_registry(self.server, self.clock, **changes) as parts:
            yield parts.registry, parts.administration, parts.bus


@pytest.fixture
def registries() -> Registries:
    return Registries()


async def test_a_drain_is_kept_across_restarts_also_for_a_node_that_comes_later(registries: Registries):
    async with registries.one() as (registry, administration, _):
        drained = await administration.drain(DrainNode(node_id="node-1", reason="new fan"))
        assert (drained.draining, drained.known) == (True, False)

    async with registries.one() as (registry, administration, _):

        async def is_draining() -> bool:
            await registry.hear_announcement(announced())
            return (await registry.get("node-1")).draining

        await until(is_draining)
        assert (await registry.get("node-1")).draining_reason == "new fan"
        assert (await registry.query(NodeQuery(draining=False))).read().total == 0

        await administration.drain(DrainNode(node_id="node-1", draining=False))
        assert (await registry.query(NodeQuery(draining=False))).read().total == 1


async def test_a_drain_is_asked_for_over_nats_and_reaches_every_registry(registries: Registries):
    async with registries.one() as (first, _, bus), registries.one() as (second, _, _):
        for registry in (first, second):
            await registry.hear_announcement(announced())

        answer = await bus.request(DRAIN, DrainNode(node_id="node-1"))
        assert answer.known

        for registry in (first, second):

            async def is_draining(registry: NodeRegistry = registry) -> bool:
                return (await registry.get("node-1")).draining

            await until(is_draining)


async def test_a_drain_that_cannot_be_written_changes_nothing(registries: Registries):
    async with registries.one() as (registry, administration, _):
        await registry.hear_announcement(announced())
        registries.server.stop()

        with pytest.raises(Unavailable):
            await administration.drain(DrainNode(node_id="node-1"))
        assert not (await registry.get("node-1")).draining
        registries.server.start()


async def test_draining_is_told_to_who_watches(registries: Registries):
    async with registries.one() as (registry, administration, _):
        changes = registry.changes()
        first = asyncio.create_task(anext(changes))
        await asyncio.sleep(0)
        await registry.hear_announcement(announced())
        await administration.drain(DrainNode(node_id="node-1", reason="new fan"))

        told = [await asyncio.wait_for(first, 5), await asyncio.wait_for(anext(changes), 5)]
        await changes.aclose()  # type: ignore[attr-defined]

    assert [(change.state, change.draining) for change in told] == [
        (NodeState.ONLINE, False),
        (NodeState.ONLINE, True),
    ]
    assert told[1].reason == "draining: new fan"


async def test_a_machine_is_registered_as_the_documentation_shows(registries: Registries):
    told = NodeRegistration.model_validate(
        {
            "node_id": "my-node",
            "hostname": "my-host",
            "tier": "gpu_peer",
            "cpu": {"cores": 8, "anything": "else"},
            "memory": {"total_mb": 65536},
            "gpus": [{"name": "RTX 4090", "vram_total_mb": 24564}],
        }
    )
    async with registries.one() as (registry, administration, _):
        node = await administration.register(told)
        found = (await registry.query(NodeQuery(requires_gpu=True, min_tier="gpu_peer", online_only=True))).read()

    assert (node.state, node.tier, node.inventory.hostname) == (NodeState.ONLINE, "GPU_PEER", "my-host")
    assert node.inventory.gpus[0].uuid == "my-node-gpu-0"
    assert [each.node_id for each in found.nodes] == ["my-node"]


async def test_only_its_id_must_be_told(registries: Registries):
    async with registries.one() as (_, administration, _):
        node = await administration.register(NodeRegistration(node_id="bare"))

    assert (node.tier, node.inventory.hostname) == ("CPU_ONLY", "bare")


async def test_a_tier_that_does_not_exist_is_refused(registries: Registries):
    async with registries.one() as (_, administration, _):
        with pytest.raises(Malformed, match="AI_FACTORY"):
            await administration.register(NodeRegistration(node_id="bare", tier="best"))


async def test_a_registered_machine_stays_for_its_time_and_reaches_every_registry(registries: Registries):
    async with registries.one() as (first, administration, _), registries.one() as (second, _, _):
        await administration.register(NodeRegistration(node_id="told"))

        async def is_known() -> bool:
            return second.knows("told")

        await until(is_known)
        for seconds, state in ((299, NodeState.ONLINE), (1, NodeState.SUSPECT), (300, NodeState.OFFLINE)):
            for _ in range(seconds):
                registries.clock.advance(1.0)
                await first.watch()
            assert (await first.get("told")).state is state


async def test_a_heartbeat_over_rest_keeps_it_and_reaches_every_registry(registries: Registries):
    async with registries.one() as (_first, administration, _), registries.one() as (second, _, _):
        await administration.register(NodeRegistration(node_id="told"))

        async def beats() -> bool:
            if not second.knows("told"):
                return False
            node = await administration.beat("told", RestHeartbeat(load_ratio=0.5))
            assert node.load_ratio == 0.5
            return (await second.get("told")).load_ratio == 0.5

        await until(beats)
        with pytest.raises(NotFound):
            await administration.beat("unknown", RestHeartbeat())


async def test_a_machine_that_announces_itself_cannot_be_told(registries: Registries):
    async with registries.one() as (registry, administration, _):
        await registry.hear_announcement(announced("node-1"))

        with pytest.raises(Conflict):
            await administration.register(NodeRegistration(node_id="node-1"))


async def test_a_node_that_is_gone_can_be_forgotten_everywhere(registries: Registries):
    async with registries.one() as (first, administration, _), registries.one() as (second, _, _):
        await administration.register(NodeRegistration(node_id="told"))
        with pytest.raises(Conflict):
            await administration.forget("told")

        async def is_known() -> bool:
            return second.knows("told")

        await until(is_known)
        for _ in range(700):
            registries.clock.advance(1.0)
            await asyncio.gather(first.watch(), second.watch())
        await administration.forget("told")

        async def is_forgotten() -> bool:
            return not second.knows("told")

        await until(is_forgotten)
        assert not first.knows("told")
    async with registries.one() as (third, _, _):
        assert (await third.query(NodeQuery())).read().total == 0


async def test_the_mesh_is_counted(registries: Registries):
    async with registries.one() as (registry, administration, _):
        await administration.register(
            NodeRegistration.model_validate({"node_id": "a", "gpus": [{"vram_total_mb": 1000, "vram_free_mb": 400}]})
        )
        await registry.hear_announcement(announced("b"))
        await administration.drain(DrainNode(node_id="b"))
        counted = await registry.count()

    assert (counted.nodes, counted.states, counted.draining) == (2, {"ONLINE": 2}, 1)
    assert counted.tiers == {"GPU_INFRA": 1, "CPU_ONLY": 1}
    assert (counted.gpus, counted.vram_total_mb, counted.vram_free_mb) == (1, 1000, 400)


async def test_a_drain_outlives_a_nats_that_lost_its_disk(registries: Registries):
    async with registries.one() as (registry, administration, _):
        await administration.drain(DrainNode(node_id="node.1", reason="new fan"))
        await settled()
        registries.server.stop()
        registries.server.start(emptied=True)
        await settled()
        await registry.hear_announcement(announced("node.1"))
        assert (await registry.get("node.1")).draining

    async with registries.one() as (registry, _, _):
        await settled()
        await registry.hear_announcement(announced("node.1"))
        assert (await registry.get("node.1")).draining_reason == "new fan"
