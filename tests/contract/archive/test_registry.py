"""What the registry writes about nodes, in every archive."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from libs.common.archive.archive import Archive
from libs.common.archive.tables import Row
from libs.common.archive.writer import ArchiveWriter
from libs.common.clock import SystemClock
from libs.common.contracts.node_registry import NodeState, NodeStatus, Tier
from services.node_registry import facts
from services.node_registry.archiving import Archiving
from services.node_registry.capabilities import difference
from services.node_registry.machine import born, heard
from services.node_registry.model import Node, Rules
from services.node_registry.rows import capabilities_row, node_row, restart_row, status_row
from services.node_registry.tables import NODE_EVENTS, NODES
from tests.nodes import AT, announced, gpu
from tests.postgres_process import PostgresProcess
from tests.postgrest_process import Supabase
from tests.unit.node_registry.house import SCHEMA, Counts

NODE_ID = "node-1"
RULE = "reason <> 'against the rule'"


def node(node_id: str = NODE_ID, **changes: object) -> Node:
    told = facts.announced(announced(node_id, gpu(0), gpu(1), **changes))
    life = born(boot_id="boot-1", heartbeat_seconds=5.0, now=0.0)
    return Node(announced=told, pulse=facts.rest(told), life=life)


def status(number: int, state: NodeState = NodeState.SUSPECT, reason: str = "silent for 15 s") -> Row:
    told = NodeStatus(
        node_id=NODE_ID,
        state=state,
        previous=NodeState.ONLINE,
        reason=reason,
        at=AT + timedelta(seconds=number),
        event_id=f"event-{number}",
    )
    return status_row(told, number=number)


@pytest.fixture
async def kept(bare: Archive) -> Archive:
    await bare.prepare(SCHEMA)
    return bare


@pytest.fixture
async def archiving(kept: Archive) -> AsyncIterator[Archiving]:
    writer, counts = ArchiveWriter(kept, SCHEMA, SystemClock()), Counts()
    archiving = Archiving(
        archive=kept, writer=writer, clock=SystemClock(), observer=counts, most_rows=100, grace_seconds=5.0
    )
    async with writer.draining(20):
        yield archiving


async def test_a_node_is_kept_as_it_was_told_last(kept: Archive):
    newest = node(tier=Tier.AI_FACTORY, labels={"room": "cellar \U0001f600", "quote": "\"',()\\"})
    for told, number in ((node(), 1), (newest, 3), (node(tier=Tier.CPU_ONLY), 2)):
        await kept.upsert(NODES, [node_row(told, at=AT, number=number)])

    found = await kept.get(NODES, {"node_id": NODE_ID})

    assert found == node_row(newest, at=AT, number=3)


async def test_everything_that_happens_to_a_node_is_read_back_newest_first(kept: Archive, archiving: Archiving):
    before, after = node(), node(driver_version=None, labels={"room": "cellar"})
    restarted = Node(
        announced=before.announced,
        pulse=before.pulse,
        life=heard(before.life, boot_id="boot-2", sequence=1, now=1.0, rules=Rules()),
    )
    changed = capabilities_row(after, difference(before.announced, after.announced), at=AT + timedelta(seconds=2))
    await kept.upsert(NODE_EVENTS, [status(1), changed, restart_row(restarted, at=AT + timedelta(seconds=3))])
    await kept.upsert(NODE_EVENTS, [status(4, NodeState.OFFLINE)])

    first = await archiving.history(NODE_ID, limit=3, after=None)
    rest = await archiving.history(NODE_ID, limit=3, after=first.next_after)

    assert [event.kind for event in (*first.events, *rest.events)] == ["state", "restart", "capabilities", "state"]
    assert first.events[2].detail == {"labels": {"before": {}, "after": {"room": "cellar"}}}
    assert rest.next_after is None


async def test_the_same_event_is_kept_once(kept: Archive, archiving: Archiving):
    for _ in range(2):
        await kept.upsert(NODE_EVENTS, [status(1)])

    assert len((await archiving.history(NODE_ID, limit=10, after=None)).events) == 1


@pytest.fixture
def with_a_rule(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Makes the database refuse some rows, by a rule that only it knows."""
    undo = ExitStack()

    def make() -> None:
        back_end = request.node.callspec.params["bare"]
        constraint = f"alter table node_events add constraint a_rule check ({RULE})"
        if back_end == "sqlite":
            trigger = f"create trigger a_rule before insert on node_events when not (new.{RULE}) begin "
            with sqlite3.connect(tmp_path / "archive.db") as connection:
                connection.execute(f"{trigger} select raise(abort, 'a_rule'); end")
        elif back_end == "postgresql":
            postgres: PostgresProcess = request.getfixturevalue("contract_postgres")
            postgres.sql(constraint)
        else:
            supabase: Supabase = request.getfixturevalue("contract_supabase")
            supabase.sql(constraint)
            undo.callback(supabase.sql, "alter table node_events drop constraint a_rule")

    with undo:
        yield make


@pytest.mark.parametrize("bare", ["sqlite", "postgresql", "supabase"], indirect=True)
async def test_a_row_that_the_database_refuses_is_put_aside_and_keeps_nobody_back(
    kept: Archive, archiving: Archiving, with_a_rule: Callable[[], None]
):
    with_a_rule()
    writer = ArchiveWriter(kept, SCHEMA, SystemClock())
    rows = [status(number) for number in range(1, 8)]
    writer.offer(NODE_EVENTS, [*rows[:3], status(9, reason="against the rule"), *rows[3:]], cursor=8)

    left = await writer.drain(20)

    assert (left, writer.committed, writer.refused) == (0, 8, 1)
    assert "a_rule" in (writer.problem() or "")
    assert len((await archiving.history(NODE_ID, limit=10, after=None)).events) == 7


async def test_a_moment_that_no_archive_can_keep_costs_its_own_row_only(kept: Archive):
    writer, counts = ArchiveWriter(kept, SCHEMA, SystemClock()), Counts()
    archiving = Archiving(
        archive=kept, writer=writer, clock=SystemClock(), observer=counts, most_rows=100, grace_seconds=5.0
    )
    archiving.write({**status(1), "at": datetime.fromisoformat("0001-01-01T00:00:00+14:00")})
    archiving.write({**status(2)})

    assert await writer.drain(20) == 0
    assert writer.refused == 1
    assert [event.event_id for event in (await archiving.history(NODE_ID, limit=9, after=None)).events] == ["event-2"]
