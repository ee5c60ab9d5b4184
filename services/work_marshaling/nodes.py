"""What is known of the nodes, from what they and the registry tell."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from libs.common.contracts.base import attempt_token
from libs.common.contracts.node_registry import (
    EngineState,
    GpuBeat,
    Memory,
    NodeAnnounced,
    NodeHeartbeat,
    NodeState,
    NodeStatus,
    NodeWorkload,
)
from libs.hardware.facts import MachineFacts, announced, beating
from services.work_marshaling.slots import SlotPool

MEMORY_STEP_MB = 256
MOST_NODES = 10_000
ONCE = datetime(1970, 1, 1, tzinfo=UTC)

_CHANGING = (
    "vram_used_mb",
    "vram_free_mb",
    "temperature_celsius",
    "power_watts",
    "utilization_ratio",
    "clock_mhz",
    "thermal_slowdown",
)
_NOTHING_OF_NOW = dict.fromkeys(_CHANGING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What a node's agent says it does."""

    boot_id: str
    pools: tuple[SlotPool, ...]
    models: frozenset[str]
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a node's detector says it has: as it was announced, and by its last word."""

    announced: MachineFacts
    now: MachineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Distrust:
    """It is on the blacklist, for everything or (with `model_name`) for one model."""

    model_name: str | None
    reason: str
    failure_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything that matching looks at. `avoided` is why nothing is given to it for a moment, `short_of_memory` why
    nothing that is to be promised memory.

    `draining` is the registry's word; the agent has its own.
    """

    node_id: str
    agent: Agent | None = None
    hardware: Hardware | None = None
    state: NodeState | None = None
    draining: bool = False
    silent: bool = False
    avoided: str | None = None
    short_of_memory: str | None = None
    distrusted: tuple[Distrust, ...] = ()

    @property
    def pools(self) -> tuple[SlotPool, ...]:
        return self.agent.pools if self.agent is not None else ()


class Nodes:
    """The nodes by id. `version` grows whenever a decision about any of them could come out differently.

    `memory_heard` is when each told last what it has free. One of which nothing was heard for `kept_seconds` is
    forgotten, and of more than `most` those that are silent for longest.
    """

    def __init__(self, *, silence_seconds: float, kept_seconds: float = math.inf, most: int = MOST_NODES) -> None:
        self._kept_seconds = kept_seconds
        self._most = most
        self._gone: list[str] = []
        self.complete_since = -1
        self._silence_seconds = silence_seconds
        self._nodes: dict[str, Node] = {}
        self._heard: dict[str, float] = {}
        self._avoid_until: dict[str, float] = {}
        self._short_until: dict[str, float] = {}
        self._changed: dict[str, int] = {}
        self.memory_heard: dict[str, float] = {}
        self.version = 0

    def __getitem__(self, node_id: str) -> Node:
        return self._nodes.get(node_id) or Node(node_id=node_id)

    def all(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def token_for(self, node_id: str, secret: str) -> str:
        """Of an attempt on this node, by the run of its agent that was heard last."""
        agent = self[node_id].agent
        return attempt_token(secret, None if agent is None else agent.boot_id)

    def silent_for(self, node_id: str, now: float) -> float:
        """Since when its agent said nothing, in seconds."""
        return now - self._heard.get(node_id, -math.inf)

    def changed_since(self, version: int) -> Iterator[Node]:
        """Those that became what they are after that version, the newest change first; of a forgotten one only its id
        is told. Of versions before `complete_since` not all is known any more: look at all, with -1.
        """
        for node_id, changed in reversed(self._changed.items()):
            if changed <= version:
                return
            yield self[node_id]

    def hear_workload(self, told: NodeWorkload, now: float) -> None:
        self._heard[told.node_id] = now
        known = self[told.node_id]
        models = frozenset(engine.model_name for engine in told.engines if engine.state is EngineState.READY)
        agent = Agent(
            boot_id=told.boot_id,
            pools=_pools(told),
            models=models,
            draining=told.draining,
        )
        if known.agent is not None and known.agent.boot_id != told.boot_id:
            self._avoid_until.pop(told.node_id, None)
        avoided = known.avoided if told.node_id in self._avoid_until else None
        self._put(replace(known, agent=agent, silent=False, avoided=avoided))

    def hear_announcement(self, told: NodeAnnounced, now: float) -> None:
        self.memory_heard[told.node_id] = now
        known = announced(_lasting(told))
        self._put(replace(self[told.node_id], hardware=Hardware(announced=known, now=beating(known, _beat_in(told)))))

    def hear_heartbeat(self, told: NodeHeartbeat, now: float) -> None:
        known = self[told.node_id]
        self.memory_heard[told.node_id] = now
        if known.hardware is not None:
            machine = beating(known.hardware.announced, _steady(told))
            self._put(replace(known, hardware=replace(known.hardware, now=machine)))

    def hear_status(self, told: NodeStatus) -> None:
        self._put(replace(self[told.node_id], state=told.state, draining=told.draining))

    def hear_drains(self, draining: frozenset[str]) -> None:
        """Which nodes the registry drains, all of them: who is not among them does not drain."""
        for node_id in draining | {node.node_id for node in self._nodes.values() if node.draining}:
            self._put(replace(self[node_id], draining=node_id in draining))

    def unheard(self, node_id: str, now: float, seconds: float) -> None:
        """It let something lapse. If its agent was not heard for so long either, it is silent until it speaks."""
        if node_id in self._nodes and self.silent_for(node_id, now) > seconds:
            self._put(replace(self[node_id], silent=True))

    def trust_all(self) -> None:
        """Begin with nobody on the blacklist."""
        for node in self.all():
            self._put(replace(node, distrusted=()))

    def distrust(self, node_id: str, model_name: str | None, found: Distrust | None) -> None:
        """Put it on the blacklist, or (None) take it off."""
        others = tuple(each for each in self[node_id].distrusted if each.model_name != model_name)
        self._put(replace(self[node_id], distrusted=others if found is None else (*others, found)))

    def avoid(self, node_id: str, reason: str, until: float) -> None:
        self._avoid_until[node_id] = until
        self._put(replace(self[node_id], avoided=reason))

    def short_of_memory(self, node_id: str, reason: str, until: float) -> None:
        self._short_until[node_id] = until
        self._put(replace(self[node_id], short_of_memory=reason))

    def forget(self, now: float) -> tuple[str, ...]:
        """Let go of who is gone. Those that go are still told of as changed until the next time."""
        for node_id in self._gone:
            if node_id not in self._nodes:
                self.complete_since = max(self.complete_since, self._changed.pop(node_id))
        silent = sorted((self._last_word(node_id), node_id) for node_id, node in self._nodes.items() if _may_go(node))
        beyond = len(self._nodes) - self._most
        self._gone = [
            node_id
            for place, (heard, node_id) in enumerate(silent)
            if now - heard > (self._kept_seconds if place >= beyond else self._silence_seconds)
        ]
        for node_id in self._gone:
            del self._nodes[node_id]
            for known in (self._heard, self.memory_heard, self._avoid_until, self._short_until):
                known.pop(node_id, None)
            self._tell_changed(node_id)
        return tuple(self._gone)

    def _last_word(self, node_id: str) -> float:
        return max(self._heard.get(node_id, -math.inf), self.memory_heard.get(node_id, -math.inf))

    def pass_time(self, now: float) -> None:
        """Notice who has been silent for too long, and whom to trust again."""
        for node_id, heard in self._heard.items():
            if now - heard > self._silence_seconds and not self._nodes[node_id].silent:
                self._put(replace(self[node_id], silent=True))
        for node_id in [node_id for node_id, until in self._avoid_until.items() if until <= now]:
            del self._avoid_until[node_id]
            self._put(replace(self[node_id], avoided=None))
        for node_id in [node_id for node_id, until in self._short_until.items() if until <= now]:
            del self._short_until[node_id]
            self._put(replace(self[node_id], short_of_memory=None))

    def _put(self, node: Node) -> None:
        if self._nodes.get(node.node_id) != node:
            self._nodes[node.node_id] = node
            self._tell_changed(node.node_id)

    def _tell_changed(self, node_id: str) -> None:
        self.version += 1
        self._changed.pop(node_id, None)
        self._changed[node_id] = self.version


def _may_go(node: Node) -> bool:
    """What others say of a node they say once: it is kept for as long as it holds."""
    return not node.draining and not node.distrusted


def _pools(told: NodeWorkload) -> tuple[SlotPool, ...]:
    """An agent that tells no pools has one, for everything it does."""
    if told.pools:
        return tuple(SlotPool(frozenset(pool.work_types), pool.slots) for pool in told.pools)
    return (SlotPool(frozenset(told.work_types), told.slots),)


def _lasting(told: NodeAnnounced) -> NodeAnnounced:
    """Without what changes all the time: that must not look like news."""
    gpus = tuple(gpu.model_copy(update=_NOTHING_OF_NOW) for gpu in told.inventory.gpus)
    memory = told.inventory.memory
    sizes = [size for size in (memory.total_mb, memory.limit_mb) if size is not None]
    fixed = Memory(total_mb=min(sizes, default=None))
    inventory = told.inventory.model_copy(
        update={"gpus": gpus, "memory": fixed, "disks": (), "network": (), "problems": ()}
    )
    return told.model_copy(update={"at": ONCE, "inventory": inventory})


def _beat_in(told: NodeAnnounced) -> NodeHeartbeat:
    """What is free, as an announcement tells it."""
    gpus = (GpuBeat(uuid=gpu.uuid, vram_free_mb=gpu.vram_free_mb, healthy=gpu.healthy) for gpu in told.inventory.gpus)
    return _steady(
        NodeHeartbeat(
            node_id=told.node_id,
            boot_id=told.boot_id,
            sequence=1,
            at=told.at,
            memory_available_mb=told.inventory.memory.available_mb,
            gpus=tuple(gpus),
        )
    )


def _steady(told: NodeHeartbeat) -> NodeHeartbeat:
    """With amounts in large steps, and without what nothing is decided by."""
    gpus = tuple(
        GpuBeat.model_construct(uuid=gpu.uuid, vram_free_mb=_rounded(gpu.vram_free_mb), healthy=gpu.healthy)
        for gpu in told.gpus
    )
    return NodeHeartbeat.model_construct(
        node_id=told.node_id,
        boot_id=told.boot_id,
        sequence=1,
        at=ONCE,
        memory_available_mb=_rounded(told.memory_available_mb),
        gpus=gpus,
    )


def _rounded(megabytes: int | None) -> int | None:
    """Free memory changes all the time; only steps of it are news."""
    return None if megabytes is None else megabytes // MEMORY_STEP_MB * MEMORY_STEP_MB
