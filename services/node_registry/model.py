"""The nouns: a node, its life, and from when we can hear it."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from libs.common.contracts.base import Identifier, Message
from libs.common.contracts.lease import Holding
from libs.common.contracts.node_administration import DrainNode
from libs.common.contracts.node_registry import Engine, Inventory, NodeState
from libs.hardware.facts import MachineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """After how many missed heartbeats a node is SUSPECT and OFFLINE.

    `mass_nodes`: at least so many silent nodes are a mass. `attention_seconds`: who has not looked for longer than this
    has not listened either. `nodes_most`: beyond so many, new ones are refused. `forget_seconds`: who is silent for so
    long while OFFLINE is forgotten.
    """

    suspect_beats: float = 3.0
    offline_beats: float = 6.0
    mass_nodes: int = 3
    attention_seconds: float = 5.0
    nodes_most: int = 20_000
    forget_seconds: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What is believed of a node. Times are seconds of the registry's own monotonic clock.

    `past_boots` are the boot ids it had before, newest last. `conflict` is why this node id seems to be used twice.
    """

    state: NodeState
    reason: str
    boot_id: str
    heard_at: float
    heartbeat_seconds: float
    sequence: int = 0
    past_boots: tuple[str, ...] = ()
    conflict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ear:
    """Since when we hear. `since` is None while we do not. `looked_at` is when we last asked."""

    since: float | None
    connections: int
    looked_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The guard against mass silence. `lifted_at`: silence that leads to OFFLINE counts only from here."""

    held: bool = False
    lifted_at: float = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a machine announced. Its inventory is kept in the JSON that it is told in: objects are six times as big."""

    boot_id: str
    at: datetime
    tier_reasons: tuple[str, ...]
    heartbeat_seconds: float
    machine: MachineFacts
    inventory_json: bytes

    @property
    def inventory(self) -> Inventory:
        return Inventory.model_validate_json(self.inventory_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A machine by its last word. `beats_json` is what the last heartbeat said of its GPUs."""

    machine: MachineFacts
    load_ratio: float | None
    beats_json: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs on a node, by its agent's word."""

    engines: tuple[Engine, ...]
    ready_models: frozenset[str]
    slots: int
    free_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    announced: Announced
    pulse: Pulse
    life: Life
    workload: Workload | None = None
    drain: DrainNode | None = None

    @property
    def draining(self) -> bool:
        return self.drain is not None and self.drain.draining

    @property
    def node_id(self) -> str:
        return self.announced.machine.node_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A node's state changed, or whether it drains. `previous` is None for a node that was not known."""

    node_id: str
    previous: NodeState | None
    state: NodeState
    reason: str
    at: datetime
    draining: bool = False
    boot_id: str | None = None


class Publisher(Holding):
    """The lease of the elected registry, renewed all the time.

    `untold` changes are still to be told, and for `behind_seconds` the archive has not taken what it was given.
    """

    untold: int = Field(0, ge=0)
    behind_seconds: float = Field(0.0, ge=0)


class Term(Message):
    """The newest term, kept for ever: it only grows."""

    holder: Identifier
    term: int = Field(ge=0)
