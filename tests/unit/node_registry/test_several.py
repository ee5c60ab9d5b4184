"""Several registries: one is elected, and the next one goes on where it stopped. The archive may be away."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from libs.common.archive.archive_memory import MemoryArchive
from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock
from libs.common.contracts.node_administration import DrainNode, NodeRegistration
from libs.common.contracts.node_registry import ANNOUNCE, STATUS, NodeState, NodeStatus
from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.errors import Malformed, NotFound, Unavailable, WrongRevision
from services.node_registry.election import LEASE_KEY
from services.node_registry.model import Publisher, Rules
from services.node_registry.tables import NODES
from tests.nodes import announced, gpu
from tests.recording import RecordingObserver
from tests.unit.node_registry.house import LEASE_SECONDS, Parts, one_registry, settled


class Mesh:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(clock=self.clock)
        self.archive = MemoryArchive()
        self.told: list[NodeStatus] = []

    def one(self, name: str, **changes: Any) -> Any:
        return one_registry(self.server, self.clock, archive=self.archive, name=name, **changes)

    async def pass_time(self, seconds: float, *registries: Parts) -> None:
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            for each in registries:
                await each.step()
            await settled()

    async def tell(self, message: Any) -> None:
        async with self.server.connect("node") as transport:
            bus = Bus(transport, name="node", observer=RecordingObserver(), clock=self.clock)
            await bus.publish(ANNOUNCE, message)
        await settled()

    def lines(self) -> list[tuple[str, NodeState | None, NodeState]]:
        return [(each.node_id, each.previous, each.state) for each in self.told]


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    made = Mesh()

    async def hear(status: NodeStatus) -> None:
        made.told.append(status)

    async with made.server.connect("observer") as transport:
        bus = Bus(transport, name="observer", observer=RecordingObserver(), clock=made.clock)
        await bus.subscribe(STATUS, hear, at_once=1)
        yield made


async def kinds(parts: Parts, node_id: str) -> list[tuple[str, str | None]]:
    page = await parts.publishing.history(node_id, limit=100, after=None)
    return [(event.kind, event.state) for event in page.events]


async def test_one_of_two_tells_and_archives(mesh: Mesh):
    async with mesh.one("first") as first, mesh.one("second") as second:
        await mesh.tell(announced("a"))
        await mesh.pass_time(2, first, second)

        assert (first.election.holds(), second.election.holds()) == (True, False)
        assert (first.counts.is_elected, second.counts.is_elected) == (True, False)
        assert mesh.lines() == [("a", None, NodeState.ONLINE)]
        assert await kinds(first, "a") == await kinds(second, "a") == [("state", "ONLINE")]
        counts = second.publishing.counted(await second.registry.count())
        assert (counts.nodes, counts.publishing) == (1, False)


async def test_another_one_goes_on_when_the_elected_one_is_gone(mesh: Mesh):
    async with mesh.one("second") as second:
        async with mesh.one("first") as first:
            await mesh.pass_time(LEASE_SECONDS + 1, first)
            assert first.election.holds()
            await mesh.tell(announced("a"))
            await mesh.pass_time(1, first, second)
        await mesh.tell(announced("b"))  # nobody is elected who could tell it
        await mesh.pass_time(LEASE_SECONDS + 1, second)

        assert second.election.holds()
        assert mesh.lines() == [("a", None, NodeState.ONLINE), ("b", None, NodeState.ONLINE)]
        assert await kinds(second, "b") == [("state", "ONLINE")]


async def test_who_was_replaced_tells_nothing_any_more(mesh: Mesh):
    async with mesh.one("first") as first, mesh.one("second") as second:
        await mesh.pass_time(LEASE_SECONDS + 1, second)  # the first one is stopped, as if its machine slept
        await mesh.tell(announced("a"))
        assert (first.election.holds(), second.election.holds()) == (False, True)
        await first.step()
        assert not first.election.holds()
        await mesh.pass_time(1, first, second)

        assert mesh.lines() == [("a", None, NodeState.ONLINE)]
        assert {each.told_by for each in mesh.told} == {"second"}


async def test_a_lease_is_given_back_at_the_end(mesh: Mesh):
    async with mesh.one("second") as second:
        async with mesh.one("first") as first:
            await mesh.pass_time(LEASE_SECONDS + 1, first)
            async with first.election.released():
                await second.election.round()
                assert not second.election.holds()
        await second.election.round()
        assert second.election.holds()


async def test_a_write_whose_receipt_was_lost_is_known_again(mesh: Mesh):
    async with mesh.one("first") as first:
        put = first.bus.put

        async def lose_receipt(*values: Any, **named: Any) -> int:
            await put(*values, **named)
            raise WrongRevision("the retry of a write that had come through")

        first.bus.put = lose_receipt  # type: ignore[method-assign]
        await mesh.pass_time(1, first)
        first.bus.put = put  # type: ignore[method-assign]
        mesh.clock.advance(LEASE_SECONDS - 0.5)

        assert first.election.holds()
        await first.election.round()
        assert first.election.holds()


async def test_a_lease_that_nobody_can_read_is_written_over(mesh: Mesh):
    async with mesh.one("first") as first:
        entry = await first.bus.get(NODE_REGISTRY, LEASE_KEY)
        assert entry is not None
        await first.bus.put(NODE_REGISTRY, LEASE_KEY, DrainNode(node_id="x"), revision=entry.revision)
        await mesh.pass_time(1, first)
        assert first.election.holds()

        lease = await first.bus.get(NODE_REGISTRY, LEASE_KEY)
        assert lease is not None
        assert Publisher.model_validate_json(lease.payload or b"").holder == "first"


async def test_an_archive_that_is_away_for_an_hour_loses_nothing(mesh: Mesh):
    async with mesh.one("first") as first:
        await mesh.tell(announced("a"))
        await mesh.pass_time(1, first)
        mesh.archive.go_away("the disk is full")
        await mesh.tell(announced("b", gpu(0)))
        await mesh.tell(announced("b", gpu(0), gpu(1)))
        await mesh.tell(announced("b", gpu(0), gpu(1), boot_id="boot-2"))
        await mesh.pass_time(3, first)
        assert "the disk is full" in (first.archiving.problem() or "")
        assert first.archiving.behind_seconds() > 0
        with pytest.raises(Unavailable):
            await kinds(first, "b")
        for _ in range(60):
            mesh.clock.advance(60.0)
            await first.step()
            await first.step()
        mesh.archive.come_back()
        await mesh.pass_time(30, first)

        assert first.archiving.problem() is None
        known = [event async for event in _all(first, "b")]
        assert {event.kind for event in known} == {"state", "capabilities", "restart"}
        assert (await mesh.archive.get(NODES, {"node_id": "b"}) or {})["gpu_count"] == 2
        assert first.archiving.waiting == 0


async def _all(parts: Parts, node_id: str) -> AsyncIterator[Any]:
    after: str | None = None
    while True:
        page = await parts.publishing.history(node_id, limit=1, after=after)
        for event in page.events:
            yield event
        after = page.next_after
        if after is None:
            return


async def test_what_the_elected_one_could_not_archive_the_next_one_archives(mesh: Mesh):
    async with mesh.one("second") as second:
        async with mesh.one("first") as first:
            await mesh.pass_time(LEASE_SECONDS + 1, first)
            await mesh.pass_time(6, first, second)
            mesh.archive.go_away()
            await mesh.tell(announced("a", gpu(0)))
            await mesh.tell(announced("a"))
            await mesh.pass_time(20, first, second)
        mesh.archive.come_back()
        await mesh.pass_time(LEASE_SECONDS + 20, second)

        assert second.election.holds()
        assert ("capabilities", "OFFLINE") not in await kinds(second, "a")
        assert {kind for kind, _ in await kinds(second, "a")} == {"state", "capabilities"}
        states = [state for kind, state in await kinds(second, "a") if kind == "state"]
        assert states == [each.state.value for each in reversed(mesh.told)]
        ids = [event.event_id async for event in _all(second, "a")]
        assert len(ids) == len(set(ids))


async def test_a_newer_row_of_a_node_is_not_replaced_by_one_of_a_replaced_registry(mesh: Mesh):
    async with mesh.one("first") as first, mesh.one("second") as second:
        await mesh.tell(announced("a"))
        await mesh.pass_time(1, first)
        await mesh.pass_time(LEASE_SECONDS + 2, second)
        await mesh.tell(announced("a", gpu(0)))
        await mesh.pass_time(2, second)
        assert second.election.holds()
        node = first.publishing._nodes["a"]
        first.archiving.refresh(replace(node, life=replace(node.life, state=NodeState.OFFLINE)))
        first.archiving.write_nodes()
        await settled()

        assert (await mesh.archive.get(NODES, {"node_id": "a"}) or {})["state"] == "ONLINE"


async def test_more_events_than_may_wait_are_counted_and_said(mesh: Mesh):
    async with mesh.one("first", most_rows=3) as first:
        mesh.archive.go_away("away")
        for number in range(6):
            await mesh.tell(announced(f"node-{number}"))
        await mesh.pass_time(1, first)

        assert first.counts.events_lost == 3
        assert "3 events were lost" in (first.archiving.problem() or "")


async def test_history_is_told_newest_first_and_only_of_who_is_known(mesh: Mesh):
    async with mesh.one("first") as first:
        await mesh.tell(announced("a"))
        await mesh.pass_time(1, first)
        await first.administration.drain(DrainNode(node_id="a", reason="new fan"))
        await mesh.pass_time(1, first)

        events = [event async for event in _all(first, "a")]
        assert [(event.kind, event.reason) for event in events] == [
            ("drain", "draining: new fan"),
            ("state", "it announced itself"),
        ]
        assert [event.event_id for event in reversed(events)] == [each.event_id for each in mesh.told]
        with pytest.raises(NotFound):
            await kinds(first, "nobody")
        with pytest.raises(Malformed):
            await first.publishing.history("a", limit=1, after="nonsense")


async def test_a_registration_that_is_repeated_reaches_every_registry(mesh: Mesh):
    async with mesh.one("first") as first, mesh.one("second") as second:
        await first.administration.register(NodeRegistration(node_id="told"))
        await mesh.pass_time(1, first, second)
        await first.administration.register(NodeRegistration(node_id="told", hostname="renamed"))
        await mesh.pass_time(1, first, second)

        for each in (first, second):
            assert (await each.registry.get("told")).inventory.hostname == "renamed"


async def test_beyond_the_most_nodes_new_ones_are_refused_and_old_ones_heard(mesh: Mesh):
    async with mesh.one("first", rules=Rules(nodes_most=2, forget_seconds=100.0)) as first:
        for node_id in ("a", "b", "c", "c"):
            await mesh.tell(announced(node_id))
        counts = await first.registry.count()
        assert (counts.nodes, counts.nodes_most, counts.refused) == (2, 2, 2)
        assert first.registry.full is not None
        with pytest.raises(Unavailable, match="2 nodes are known"):
            await first.administration.register(NodeRegistration(node_id="d"))

        await mesh.pass_time(110, first)  # who is OFFLINE for so long makes room
        await mesh.tell(announced("c"))
        assert first.registry.knows("c")


async def test_who_is_forgotten_stays_in_the_archive(mesh: Mesh):
    async with mesh.one("first", rules=Rules(forget_seconds=60.0)) as first:
        await mesh.tell(announced("a"))
        await mesh.pass_time(50, first)
        assert (await first.registry.get("a")).state is NodeState.OFFLINE
        await mesh.pass_time(20, first)

        assert not first.registry.knows("a")
        assert [state for _, state in await kinds(first, "a")] == ["OFFLINE", "SUSPECT", "ONLINE"]
        assert (await mesh.archive.get(NODES, {"node_id": "a"}) or {})["state"] == "OFFLINE"


async def test_who_waits_for_the_lease_does_not_keep_changes_for_ever(mesh: Mesh):
    async with mesh.one("first") as first, mesh.one("second") as second:
        await mesh.tell(announced("a", gpu(0)))
        await mesh.tell(announced("a"))
        assert len(second.archiving._kept) > 0
        await mesh.pass_time(10, first, second)

        assert len(second.archiving._kept) == 0
        assert second.publishing.burden() == (0, 0.0)
