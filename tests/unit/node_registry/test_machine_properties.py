"""Whatever order of heartbeats and silence: what may never happen, and what must."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import NodeState
from services.node_registry.machine import born, heard, listen, sweep
from services.node_registry.model import Ear, Guard, Life, Rules

RULES = Rules()
NODES = ("a", "b", "c", "d", "e")
HEARTBEAT = 5.0

seconds = st.floats(0.0, 40.0, allow_nan=False)
beats = st.tuples(st.just("beat"), st.sampled_from(NODES), st.sampled_from(("x", "y")))
happenings = st.one_of(
    beats,
    st.tuples(st.just("wait"), seconds, st.none()),
    st.tuples(st.just("outage"), seconds, st.none()),
)


@dataclass
class World:
    """The registry's part of the world, driven by hand; it looks twice a second."""

    now: float = 0.0
    connections: int = 1
    hearing: bool = True
    guard: Guard = field(default_factory=Guard)
    lives: dict[str, Life] = field(default_factory=dict)
    ear: Ear = field(default_factory=lambda: Ear(since=0.0, connections=1, looked_at=0.0))

    def wait(self, amount: float) -> None:
        until = self.now + amount
        while self.now < until:
            self.now = min(until, self.now + 0.5)
            self.look()

    def outage(self, amount: float) -> None:
        self.hearing = False
        self.wait(amount)
        self.hearing, self.connections = True, self.connections + 1
        self.look()

    def look(self) -> None:
        self.ear = listen(self.ear, now=self.now, connections=self.connections, hearing=self.hearing, rules=RULES)
        before = self.lives
        changed, self.guard = sweep(before, ear=self.ear, guard=self.guard, now=self.now, rules=RULES)
        for node, life in changed.items():
            self.check(before[node], life)
        self.lives = before | changed

    def check(self, before: Life, after: Life) -> None:
        """A state changes for the worse only after a silence that we could hear, and one step at a time or two."""
        assert self.hearing
        silence = self.now - max(before.heard_at, self.ear.since or 0.0)
        needed = RULES.suspect_beats if after.state is NodeState.SUSPECT else RULES.offline_beats
        assert silence >= needed * HEARTBEAT
        assert list(NodeState).index(after.state) > list(NodeState).index(before.state)
        assert (after.boot_id, after.heard_at) == (before.boot_id, before.heard_at)

    def beat(self, node: str, boot: str) -> None:
        known = self.lives.get(node)
        if known is None:
            self.lives[node] = born(boot_id=boot, heartbeat_seconds=HEARTBEAT, now=self.now)
            return
        after = heard(known, boot_id=boot, sequence=1, now=self.now, rules=RULES)
        assert after.conflict is not None or after.state is NodeState.ONLINE
        assert after.heard_at >= known.heard_at
        self.lives[node] = after

    def happen(self, what: str, first: object, second: object) -> None:
        if what == "beat":
            assert isinstance(first, str)
            assert isinstance(second, str)
            self.beat(first, second)
        else:
            assert isinstance(first, float)
            (self.wait if what == "wait" else self.outage)(first)


@given(st.lists(happenings, max_size=40))
def test_nodes_get_worse_only_by_silence_that_we_could_hear(story: list[tuple[str, object, object]]):
    world = World()
    for happening in story:
        world.happen(*happening)


@given(st.lists(happenings, max_size=40), st.sampled_from(NODES))
def test_a_node_that_beats_is_never_suspected(story: list[tuple[str, object, object]], faithful: str):
    world = World()
    world.beat(faithful, "x")
    for what, first, second in story:
        if what == "beat":
            if first != faithful:
                world.happen(what, first, second)
            continue
        assert isinstance(first, float)
        for _ in range(int(first / HEARTBEAT) + 1):
            (world.wait if what == "wait" else world.outage)(HEARTBEAT)
            world.beat(faithful, "x")
        assert world.lives[faithful].state is NodeState.ONLINE


@given(st.lists(happenings, max_size=40))
def test_whatever_happened_a_lone_silent_node_is_offline_in_time(story: list[tuple[str, object, object]]):
    world = World()
    for happening in story:
        world.happen(*happening)
    for node in NODES:
        world.beat(node, "z")
    for _ in range(12):
        world.wait(HEARTBEAT)
        for node in NODES[1:]:
            world.beat(node, "z")

    assert world.lives[NODES[0]].state is NodeState.OFFLINE
    assert all(world.lives[node].state is NodeState.ONLINE for node in NODES[1:])


@given(st.lists(happenings, max_size=30))
def test_most_nodes_are_never_declared_dead_together(story: list[tuple[str, object, object]]):
    world = World()
    for node in NODES:
        world.beat(node, "x")
    for happening in story:
        world.happen(*happening)
    for node in NODES:
        world.beat(node, "w")
    world.wait(20 * HEARTBEAT)

    assert {world.lives[node].state for node in NODES} == {NodeState.SUSPECT}
