"""Which GPUs a division could be put on: sets of them, the barest first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.split import Parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """The GPUs of each stage in the order of ranks. `linked`: those of every stage have NVLink between them all."""

    stages: tuple[tuple[Gpu, ...], ...]
    linked: bool

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for stage in self.stages for gpu in stage)

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(gpu.node_id for gpu in self.gpus))

    @property
    def kind(self) -> tuple[object, ...]:
        """The same for seats that a model cannot tell apart."""
        return (self.linked, len(self.node_ids), tuple((g.total, g.free, g.name, g.capability) for g in self.gpus))


Usable = Callable[[Gpu], int]


@dataclass(frozen=True, kw_only=True)  # without slots: what follows from the islands is remembered
class Room:
    """The GPUs of one node that may be taken, in sets that NVLink connects, the least usable of a set first."""

    islands: tuple[tuple[Gpu, ...], ...]

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for island in self.islands for gpu in island)

    @cached_property
    def whole(self) -> "Room":
        """Without parts of GPUs, which work for themselves alone."""
        if not any(gpu.is_part for gpu in self.gpus):
            return self
        return Room(islands=tuple(tuple(gpu for gpu in island if not gpu.is_part) for island in self.islands))

    def without(self, taken: frozenset[str]) -> "Room":
        if not any(gpu.uuid in taken for gpu in self.gpus):
            return self
        return Room(islands=tuple(tuple(gpu for gpu in island if gpu.uuid not in taken) for island in self.islands))

    def connects(self, gpus: Sequence[Gpu]) -> bool:
        """Whether NVLink connects each of these with each other."""
        return any(all(gpu in island for gpu in gpus) for island in self.islands)


def room_of(node: Node, usable: Usable) -> Room:
    """The GPUs of a node of which anything can be used."""
    islands = (tuple(sorted((gpu for gpu in island if usable(gpu) > 0), key=usable)) for island in node.islands())
    return Room(islands=tuple(island for island in islands if island))


def alone(rooms: Sequence[Room]) -> Iterator[Seats]:
    """Every GPU for itself."""
    for room in rooms:
        for gpu in room.gpus:
            yield Seats(stages=((gpu,),), linked=True)


def abreast(rooms: Sequence[Room], tensor: int, usable: Usable, *, linked: bool) -> Iterator[Seats]:
    """Ranks of one stage in one node: within an island, or over islands where `linked` is false."""
    for room in rooms:
        pools = room.islands if linked else (tuple(sorted(room.gpus, key=usable)),)
        for pool in pools:
            for first in range(len(pool) - tensor + 1):
                chosen = pool[first : first + tensor]
                if linked or not room.connects(chosen):
                    yield Seats(stages=(chosen,), linked=linked)


def in_a_row(room: Room, tensor: int, stages: int, usable: Usable) -> Seats | None:
    """Stages within one node on its most usable GPUs; None where there are too few. A stage keeps to an island."""
    whole: list[tuple[Gpu, ...]] = []
    rest: list[Gpu] = []
    for island in room.islands:
        ordered = sorted(island, key=usable, reverse=True)
        cut = len(ordered) // tensor * tensor
        whole += [tuple(ordered[place : place + tensor]) for place in range(0, cut, tensor)]
        rest += ordered[cut:]
    rest.sort(key=usable, reverse=True)
    across = [tuple(rest[place : place + tensor]) for place in range(0, len(rest) // tensor * tensor, tensor)]
    found = sorted(whole, key=lambda stage: min(map(usable, stage)), reverse=True)[:stages]
    found += across[: stages - len(found)]
    if len(found) < stages:
        return None
    return Seats(stages=tuple(found), linked=all(room.connects(stage) for stage in found))


def over_nodes(rooms: Sequence[Room], tensor: int, per_node: int, nodes: int, usable: Usable) -> Seats | None:
    """As many stages on each of some nodes, those with most room; None where there are too few."""
    found = [seats for room in rooms if (seats := in_a_row(room, tensor, per_node, usable))]
    found.sort(key=lambda seats: sum(map(usable, seats.gpus)), reverse=True)
    if len(found) < nodes:
        return None
    chosen = found[:nodes]
    return Seats(
        stages=tuple(stage for seats in chosen for stage in seats.stages), linked=all(seats.linked for seats in chosen)
    )


def spanning(rooms: Sequence[Room], parallel: Parallel) -> Seats | None:
    """Stages that are wider than any node, over nodes that give equally many GPUs; None where there are too few."""
    most = max((len(room.gpus) for room in rooms), default=0)
    for each in range(min(most, parallel.gpus), 0, -1):
        roomy = [room for room in rooms if len(room.gpus) >= each]
        if parallel.gpus % each or len(roomy) * each < parallel.gpus:
            continue
        ranks = [gpu for room in islice(roomy, parallel.gpus // each) for gpu in room.gpus[-each:]]
        cut = range(0, parallel.gpus, parallel.tensor)
        return Seats(stages=tuple(tuple(ranks[place : place + parallel.tensor]) for place in cut), linked=False)
    return None
