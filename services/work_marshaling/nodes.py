"""What is known of the nodes, from what they and the registry tell."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from libs.common.contracts.node_registry import (
    EngineState,
    NodeAnnounced,
    NodeHeartbeat,
    NodeState,
    NodeStatus,
    NodeWorkload,
)
from services.work_marshaling.slots import SlotPool

MEMORY_STEP_MB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What a node's agent says it does."""

    boot_id: str
    pools: tuple[SlotPool, ...]
    models: frozenset[str]
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a node's detector says it has. What is not known is None."""

    labels: tuple[tuple[str, str], ...] = ()
    gpus: int = 0
    vram_mb_per_gpu: int | None = None
    ram_mb: int | None = None
    ram_free_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything that matching looks at. `avoided` is why nothing is given to it for a moment."""

    node_id: str
    agent: Agent | None = None
    hardware: Hardware | None = None
    state: NodeState | None = None
    silent: bool = False
    avoided: str | None = None

    @property
    def pools(self) -> tuple[SlotPool, ...]:
        return self.agent.pools if self.agent is not None else ()


class Nodes:
    """The nodes by id. `version` grows whenever a decision about any of them could come out differently."""

    def __init__(self, *, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._nodes: dict[str, Node] = {}
        self._heard: dict[str, float] = {}
        self._avoid_until: dict[str, float] = {}
        self._changed: dict[str, int] = {}
        self.version = 0

    def __getitem__(self, node_id: str) -> Node:
        return self._nodes.get(node_id) or Node(node_id=node_id)

    def all(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    def changed_since(self, version: int) -> Iterator[Node]:
        """Those that became what they are after that version, the newest change first."""
        for node_id, changed in reversed(self._changed.items()):
            if changed <= version:
                return
            yield self._nodes[node_id]

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

    def hear_announcement(self, told: NodeAnnounced) -> None:
        gpus = [gpu for gpu in told.inventory.gpus if gpu.healthy]
        vram = [gpu.vram_total_mb for gpu in gpus if gpu.vram_total_mb is not None]
        memory = told.inventory.memory
        sizes = [size for size in (memory.total_mb, memory.limit_mb) if size is not None]
        hardware = Hardware(
            labels=tuple(sorted(told.labels.items())),
            gpus=len(gpus),
            vram_mb_per_gpu=max(vram, default=None),
            ram_mb=min(sizes, default=None),
            ram_free_mb=_rounded(memory.available_mb),
        )
        self._put(replace(self[told.node_id], hardware=hardware))

    def hear_heartbeat(self, told: NodeHeartbeat) -> None:
        known = self[told.node_id]
        if known.hardware is not None:
            hardware = replace(known.hardware, ram_free_mb=_rounded(told.memory_available_mb))
            self._put(replace(known, hardware=hardware))

    def hear_status(self, told: NodeStatus) -> None:
        self._put(replace(self[told.node_id], state=told.state))

    def avoid(self, node_id: str, reason: str, until: float) -> None:
        self._avoid_until[node_id] = until
        self._put(replace(self[node_id], avoided=reason))

    def pass_time(self, now: float) -> None:
        """Notice who has been silent for too long, and whom to trust again."""
        for node_id, heard in self._heard.items():
            if now - heard > self._silence_seconds and not self._nodes[node_id].silent:
                self._put(replace(self[node_id], silent=True))
        for node_id in [node_id for node_id, until in self._avoid_until.items() if until <= now]:
            del self._avoid_until[node_id]
            self._put(replace(self[node_id], avoided=None))

    def _put(self, node: Node) -> None:
        if self._nodes.get(node.node_id) != node:
            self._nodes[node.node_id] = node
            self.version += 1
            self._changed.pop(node.node_id, None)
            self._changed[node.node_id] = self.version


def _pools(told: NodeWorkload) -> tuple[SlotPool, ...]:
    """An agent that tells no pools has one, for everything it does."""
    if told.pools:
        return tuple(SlotPool(frozenset(pool.work_types), pool.slots) for pool in told.pools)
    return (SlotPool(frozenset(told.work_types), told.slots),)


def _rounded(megabytes: int | None) -> int | None:
    """Free memory changes all the time; only steps of it are news."""
    return None if megabytes is None else megabytes // MEMORY_STEP_MB * MEMORY_STEP_MB
