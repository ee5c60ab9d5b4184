"""Hear, judge, answer, tell."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.base import Written, node_token
from libs.common.contracts.node_administration import DrainNode, NodesCounted
from libs.common.contracts.node_registry import (
    ANNOUNCE,
    DISCOVER,
    HEARTBEAT,
    Discover,
    NodeAnnounced,
    NodeExcluded,
    NodeHeartbeat,
    NodeQuery,
    NodesFound,
    NodeState,
    NodeStatus,
    NodeView,
    NodeWorkload,
)
from libs.common.errors import NotFound
from services.node_registry.capabilities import difference
from services.node_registry.chronicle import Chronicle
from services.node_registry.facts import announced, pulse, rest, workload
from services.node_registry.machine import born, heard, listen, missed, outlived, sweep
from services.node_registry.matching import Wanted, matching, read, refusals
from services.node_registry.model import Announced, Change, Ear, Guard, Life, Node, Rules, Workload
from services.node_registry.observer import Observer
from services.node_registry.views import counted, found, view

log = structlog.get_logger()

WORKLOADS = 10_000
"""Of nodes that have not announced themselves yet."""
JUDGED_AT_ONCE = 2000
WRITTEN_AT_ONCE = 100
"""Nodes, before others get their turn: each slice takes one to three milliseconds."""
UNREAD = 1000
"""Changes that wait for one reader of the event stream."""


class NodeRegistry:
    """Everything is kept in memory: nodes tell it again within a minute, or at once when they are asked."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        rules: Rules,
        observer: Observer,
        chronicle: Chronicle,
        discover_seconds: float,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self.rules = rules
        self._observer = observer
        self._chronicle = chronicle
        self._discover_seconds = discover_seconds
        self._nodes: dict[str, Node] = {}
        self._workloads: dict[str, Workload] = {}
        self._drains: dict[str, DrainNode] = {}
        self._watchers: set[asyncio.Queue[NodeStatus]] = set()
        self._ear = Ear(since=None, connections=0, looked_at=clock.monotonic())
        self._guard = Guard()
        self._refused = 0
        self._ask_everybody = True
        self._asked_at: float | None = None

    async def hear_announcement(self, told: NodeAnnounced) -> None:
        """A node that is one too many is refused: it may come back when another one was forgotten."""
        self._observer.heard("announcement")
        now, node = self._clock.monotonic(), self._nodes.get(told.node_id)
        if node is None and self.full is not None:
            self._refuse(told.node_id)
        elif node is None:
            life = born(boot_id=told.boot_id, heartbeat_seconds=told.heartbeat_seconds, now=now)
            load, drain = self._workloads.pop(told.node_id, None), self._drains.get(told.node_id)
            facts = announced(told)
            self._keep(Node(announced=facts, pulse=rest(facts), life=life, workload=load, drain=drain), None)
        else:
            self._hear_again(node, announced(told), now)

    def _hear_again(self, node: Node, told: Announced, now: float) -> None:
        life = self._heard(node, told.boot_id, None, now)
        if life.boot_id != told.boot_id:
            self._keep(replace(node, life=life), node.life)
            return
        life = replace(life, heartbeat_seconds=told.heartbeat_seconds)
        beaten = node.pulse if node.life.boot_id == told.boot_id else None
        after = replace(node, announced=told, pulse=rest(told, beaten), life=life)
        self._keep(after, node.life)
        if changes := difference(node.announced, told):
            self._chronicle.altered(after, changes)

    async def hear_heartbeat(self, beat: NodeHeartbeat) -> None:
        """The beat of a node that we do not know, or that restarted since it announced itself, makes us ask."""
        now, node = self._clock.monotonic(), self._nodes.get(beat.node_id)
        self._observer.heard("heartbeat" if node is not None else "stranger")
        if node is None:
            self._ask_everybody = True
            return
        fresh = beat.boot_id != node.life.boot_id or beat.sequence > node.life.sequence
        life = self._heard(node, beat.boot_id, beat.sequence, now)
        if life.boot_id != node.announced.boot_id:
            self._ask_everybody = True
        newest = pulse(node.announced, beat) if fresh and life.boot_id == beat.boot_id else node.pulse
        self._keep(replace(node, life=life, pulse=newest), node.life)

    async def hear_workload(self, told: NodeWorkload) -> None:
        """An agent is another process than the detector: its word says what runs, not whether the node is alive."""
        self._observer.heard("workload")
        node = self._nodes.get(told.node_id)
        if node is not None:
            self._nodes[told.node_id] = replace(node, workload=workload(told))
        elif len(self._workloads) < WORKLOADS:
            self._workloads[told.node_id] = workload(told)

    async def query(self, query: NodeQuery) -> Written[NodesFound]:
        """Raises `Malformed` for a name that does not exist."""
        wanted, now = read(query), self._clock.monotonic()
        nodes = list(self._nodes.values())
        matched = [node async for some in _slices(nodes, JUDGED_AT_ONCE) for node in matching(some, wanted)]
        after = matched if query.after is None else [node for node in matched if node.node_id > query.after]
        shown = wanted.order.first(after, query.limit)
        return found(
            [view(node, now) async for some in _slices(shown, WRITTEN_AT_ONCE) for node in some],
            total=len(matched),
            next_after=shown[-1].node_id if len(after) > len(shown) and wanted.order.by_id else None,
            excluded=await self._excluded(nodes, wanted) if query.explain else None,
        )

    async def _excluded(self, nodes: Sequence[Node], wanted: Wanted) -> tuple[NodeExcluded, ...]:
        judged = [(node, refusals(node, wanted)) async for some in _slices(nodes, WRITTEN_AT_ONCE) for node in some]
        return tuple(NodeExcluded(node_id=node.node_id, reasons=tuple(why)) for node, why in judged if why)

    async def get(self, node_id: str) -> NodeView:
        """Raises `NotFound`."""
        node = self._nodes.get(node_id)
        if node is None:
            raise NotFound(f"There is no node {node_id!r}.", node_id=node_id)
        return view(node, self._clock.monotonic()).read()

    async def count(self) -> NodesCounted:
        counts = counted(list(self._nodes.values()), mass_silence=self._guard.held)
        return counts.model_copy(update={"nodes_most": self.rules.nodes_most, "refused": self._refused})

    @property
    def full(self) -> str | None:
        """Why no further node can be known."""
        if len(self._nodes) < self.rules.nodes_most:
            return None
        return f"{len(self._nodes)} nodes are known, the most that may be; {self._refused} announcements were refused"

    def last_sequence(self, node_id: str) -> int:
        return self._nodes[node_id].life.sequence if node_id in self._nodes else 0

    def knows(self, node_id: str) -> bool:
        return node_id in self._nodes

    def take_drain(self, drain: DrainNode) -> None:
        """It was written that a node is to drain, or no longer. Holds for a node that is not known yet, too."""
        self._drains[drain.node_id] = drain
        node = self._nodes.get(drain.node_id)
        if node is None or node.drain == drain:
            return
        was, node = node.draining, replace(node, drain=drain)
        self._nodes[drain.node_id] = node
        if node.draining is not was:
            reason = f"{'draining' if node.draining else 'no longer draining'}: {drain.reason or 'no reason given'}"
            log.info("node_drain_changed", node_id=node.node_id, draining=node.draining, reason=drain.reason)
            self._tell(node, node.life.state, reason)

    def drain_of(self, token: str) -> DrainNode | None:
        """The drain of the node with this token, while it holds."""
        return next(
            (drain for drain in self._drains.values() if drain.draining and node_token(drain.node_id) == token), None
        )

    def take_leave(self, node_id: str) -> None:
        """It was written that a node is to be forgotten. One that is heard of again meanwhile stays."""
        node = self._nodes.get(node_id)
        if node is not None and node.life.state is not NodeState.ONLINE:
            self._forget(node_id, "it was told to")

    async def changes(self) -> AsyncIterator[NodeStatus]:
        """Every change from now on. Who does not keep up loses the oldest."""
        mine: asyncio.Queue[NodeStatus] = asyncio.Queue(UNREAD)
        self._watchers.add(mine)
        try:
            while True:
                yield await mine.get()
        finally:
            self._watchers.discard(mine)

    async def watch(self) -> None:
        """Time has passed: judge every node's silence, and ask everybody when there is a reason to.

        Silence is judged up to the moment before which all that was told has been heard. Raises `TimedOut` when too
        much still waits to be heard, and `Disconnected` when it cannot ask.
        """
        now = self._clock.monotonic()
        if self._bus.problem() is None:
            await self._bus.catch_up(HEARTBEAT, ANNOUNCE)
        self._listen(now)
        lives = {node_id: node.life for node_id, node in self._nodes.items()}
        changed, guard = sweep(lives, ear=self._ear, guard=self._guard, now=now, rules=self.rules)
        self._tell_guard(guard)
        for node_id, life in changed.items():
            self._keep(replace(self._nodes[node_id], life=life), lives[node_id])
        for node_id in outlived(lives, now=now, rules=self.rules):
            self._forget(node_id, "it has been OFFLINE for too long")
        states = Counter(node.life.state for node in self._nodes.values())
        self._observer.seen(states, mass_silence=self._guard.held)
        await self._ask(now)

    def _tell(self, node: Node, previous: NodeState | None, reason: str) -> None:
        """To who watches us, at once; the chronicle tells the mesh."""
        change = Change(
            node_id=node.node_id,
            previous=previous,
            state=node.life.state,
            reason=reason,
            at=self._clock.now(),
            draining=node.draining,
            boot_id=node.life.boot_id,
        )
        self._chronicle.changed(change, node)
        told = NodeStatus(
            node_id=change.node_id,
            state=change.state,
            previous=previous,
            reason=reason,
            at=change.at,
            draining=change.draining,
            boot_id=change.boot_id,
        )
        for watcher in self._watchers:
            if watcher.full():
                watcher.get_nowait()
            watcher.put_nowait(told)

    def _forget(self, node_id: str, reason: str) -> None:
        del self._nodes[node_id]
        self._chronicle.forgotten(node_id)
        log.info("node_forgotten", node_id=node_id, reason=reason)

    def _refuse(self, node_id: str) -> None:
        self._observer.heard("refused")
        self._refused += 1
        if self._refused == 1:
            log.error("nodes_refused", node_id=node_id, nodes=len(self._nodes), reason="NODE_REGISTRY_NODES_MOST")

    def _heard(self, node: Node, boot_id: str, sequence: int | None, now: float) -> Life:
        life = heard(node.life, boot_id=boot_id, sequence=sequence, now=now, rules=self.rules)
        if life.conflict is not None and life.conflict != node.life.conflict:
            log.error("node_id_used_twice", node_id=node.node_id, reason=life.conflict)
        if life.boot_id != boot_id:
            self._observer.heard("conflict")
        return life

    def _keep(self, node: Node, before: Life | None) -> None:
        self._nodes[node.node_id] = node
        life, previous = node.life, before.state if before is not None else None
        if before is not None and before.boot_id != life.boot_id:
            self._chronicle.restarted(node)
        if life.state is previous:
            return
        silence = round(missed(life, self._clock.monotonic()) * life.heartbeat_seconds, 1)
        say = log.info if life.state is NodeState.ONLINE else log.warning
        say("node_state_changed", node_id=node.node_id, state=life.state, reason=life.reason, silent_seconds=silence)
        self._observer.changed(life.state)
        self._tell(node, previous, life.reason)

    def _listen(self, now: float) -> None:
        connections = self._bus.connections
        if connections != self._ear.connections:
            self._ask_everybody = True
        hearing = self._bus.problem() is None
        self._ear = listen(self._ear, now=now, connections=connections, hearing=hearing, rules=self.rules)

    def _tell_guard(self, guard: Guard) -> None:
        if guard.held and not self._guard.held:
            log.error("mass_silence", nodes=len(self._nodes), reason="more than half of the nodes fell silent together")
        elif self._guard.held and not guard.held:
            log.info("mass_silence_ended")
        self._guard = guard

    async def _ask(self, now: float) -> None:
        recently = self._asked_at is not None and now - self._asked_at < self._discover_seconds
        if not self._ask_everybody or recently or self._ear.since is None:
            return
        await self._bus.publish(DISCOVER, Discover(asked_by="node_registry"))
        self._ask_everybody, self._asked_at = False, now


async def _slices(nodes: Sequence[Node], size: int) -> AsyncIterator[Sequence[Node]]:
    """Others get their turn between them."""
    for start in range(0, len(nodes), size):
        if start:
            await asyncio.sleep(0)
        yield nodes[start : start + size]
