"""Where to put a model: the smallest set of GPUs that serves what was asked, in order of preference."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

from libs.inference.planner.attempt import Attempts, Failure, Instance
from libs.inference.planner.calibration import MeasuredStart
from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.goal import Goal, Prefer, Shape, Strategy, preference, strategy_of
from libs.inference.planner.memory import GIB, Verdict
from libs.inference.planner.options import Asked
from libs.inference.planner.rules import Refusal, refusals
from libs.inference.planner.seats import Room, Seats, abreast, alone, in_a_row, over_nodes, room_of, spanning
from libs.inference.planner.sentences import capability_refusal
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.speed import gpu_bandwidth
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import Engine

MOST_RANKS = 64
MORE_NODES = 4
"""How many more nodes are tried than the weights alone need."""

MORE_REPLICAS = 64
"""How many more replicas are tried than the requests alone need, for the tokens per second that are wanted."""

FASTER = 0.8
"""Who wants low latency gets a larger set where a token then takes less than this part of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A division that was looked at and not taken, and why."""

    strategy: Strategy
    parallel: Parallel
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to start, one instance per replica; none where nothing fits. `declined` says in order what was not taken."""

    instances: tuple[Instance, ...] = ()
    declined: tuple[Declined, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def strategy(self) -> Strategy | None:
        return strategy_of(self.instances[0].parallel) if self.instances else None


class Chooser:
    """Chooses for one model among one set of nodes. Depends on its arguments alone."""

    def __init__(
        self,
        facts: ModelFacts,
        asked: Asked,
        engine: Engine,
        nodes: Sequence[Node],
        goal: Goal,
        starts: Sequence[MeasuredStart] = (),
    ) -> None:
        self._facts = facts
        self._engine = engine
        self._goal = self._wanted = goal
        self._sizes = Sizes(facts)
        self._attempts = Attempts(self._sizes, asked, engine, goal, starts)
        self._declined: dict[tuple[Parallel, str], Declined] = {}
        self._accepted_as: dict[Parallel, tuple[Parallel, Refusal | None]] = {}
        gpus = [gpu for node in nodes for gpu in node.gpus]
        self._usable = {gpu.uuid: self._attempts.usable(gpu) if self._is_able(gpu) else 0 for gpu in gpus}
        self._rooms = [room for node in nodes if (room := room_of(node, self._usable_of)).islands]
        self._shapes = self._all_shapes()
        self._decline_parts()

    def choose(self) -> Choice:
        """Raises `Malformed` or `Unsupported` where the cache cannot be laid out."""
        goal = self._goal
        if goal.replicas is not None:
            return self._told(self._replicas(goal.replicas, max(1.0, goal.concurrency / goal.replicas)))
        together = self._replicas(1, goal.concurrency)
        if goal.prefer is Prefer.LATENCY and together:
            return self._told(together)
        apart = self._apart(together[0] if together else None)
        if not apart:
            return self._told(together)
        wanted = f"{goal.concurrency:g} requests at once"
        if goal.tokens_per_second is not None:
            wanted += f" with {goal.tokens_per_second:g} tokens per second"
        return self._told(apart, f"{len(apart)} replicas serve {wanted} on no more GPUs than one engine would.")

    def _told(self, instances: Sequence[Instance], *notes: str) -> Choice:
        if not instances and not self._declined:
            self._decline(Parallel(tensor=self._goal.tensor or 1), self._lacking())
        taken = {(each.parallel.tensor, each.parallel.pipeline) for each in instances}
        declined = [d for d in self._declined.values() if (d.parallel.tensor, d.parallel.pipeline) not in taken]
        return Choice(instances=tuple(instances), declined=tuple(declined), notes=notes)

    def _lacking(self) -> Refusal:
        """Why no set of GPUs was looked at. Ray alone would take nodes that give unequally many."""
        together = (self._goal.tensor or 1) * (self._goal.pipeline or 1)
        wanted = together * (self._goal.replicas or 1)
        there = [len((room.whole if together > 1 else room).gpus) for room in self._rooms]
        if wanted > sum(there):
            text = f"World size ({wanted}) is larger than the number of available GPUs ({sum(there)})."
            return Refusal(code="too_few_gpus", message=text)
        listed = ", ".join(map(str, there))
        text = f"World size ({wanted}) needs as many GPUs of each node that takes part, and the nodes have {listed}."
        return Refusal(code="unequal_nodes", message=text)

    def _apart(self, together: Instance | None) -> list[Instance]:
        """Replicas of the smallest instance, where they serve everything with no more GPUs than one instance."""
        goal = self._goal
        if goal.forced or goal.concurrency <= 1:
            return []
        if together is not None and together.parallel.gpus == 1:
            return []
        with self._aiming_at(replace(goal, tokens_per_second=None)):
            count = self._count_apart(len(self._usable) if together is None else together.parallel.gpus)
        if count <= 1:
            return []
        with self._aiming_at(replace(goal, replicas=count)):
            return self._replicas(count, max(1.0, goal.concurrency / count))

    def _count_apart(self, most: int) -> int:
        """How many of the smallest instance serve the requests, as fast as was wanted, on so many GPUs; 0: none do.

        No more than there are requests: one request is answered by one engine.
        """
        goal, smallest = self._wanted, self._one(frozenset(), 1.0)
        if smallest is None:
            return 0
        least = math.ceil(goal.concurrency / max(1.0, smallest.start.safe_concurrency))
        most = min(most // smallest.parallel.gpus, least + MORE_REPLICAS, math.ceil(goal.concurrency))
        if least > most or not self._is_fast_enough(most, smallest.parallel):
            return 0
        while least < most:
            middle = (least + most) // 2
            least, most = (least, middle) if self._is_fast_enough(middle, smallest.parallel) else (middle + 1, most)
        return most

    def _is_fast_enough(self, count: int, same: Parallel) -> bool:
        """Whether so many replicas give the tokens per second that are wanted; more give no fewer."""
        each = self._one(frozenset(), max(1.0, self._wanted.concurrency / count), same)
        return each is not None and count * each.tokens_per_second >= (self._wanted.tokens_per_second or 0)

    @contextmanager
    def _aiming_at(self, goal: Goal) -> Iterator[None]:
        before = self._goal, self._attempts
        self._goal, self._attempts = goal, self._attempts.with_goal(goal)
        try:
            yield
        finally:
            self._goal, self._attempts = before

    def _replicas(self, count: int, concurrency: float) -> list[Instance]:
        """All of them, on GPUs of their own and with the same division, or none."""
        taken: frozenset[str] = frozenset()
        found: list[Instance] = []
        for _ in range(count):
            instance = self._one(taken, concurrency, found[0].parallel if found else None)
            if instance is None:
                return []
            found.append(instance)
            taken |= {gpu.uuid for gpu in instance.seats.gpus}
        return found

    def _one(self, taken: frozenset[str], concurrency: float, same: Parallel | None = None) -> Instance | None:
        rooms = [room.without(taken) for room in self._rooms] if taken else self._rooms
        best: Instance | None = None
        for shape in self._shapes:
            if same is not None and (shape.tensor, shape.parallel.pipeline) != (same.tensor, same.pipeline):
                continue
            found = self._in_shape(shape, rooms, concurrency)
            if found is None:
                continue
            if self._goal.prefer is not Prefer.LATENCY:
                return found
            if best is None or found.seconds_per_step < FASTER * best.seconds_per_step:
                best = found
        return best

    def _in_shape(self, shape: Shape, rooms: Sequence[Room], concurrency: float) -> Instance | None:
        parallel, refusal = self._accepted(shape.parallel)
        if refusal is not None:
            self._decline(parallel, refusal)
            return None
        if self._too_heavy(parallel):
            return None
        together = [room.whole for room in rooms] if parallel.gpus > 1 else rooms
        seats = self._sorted(self._seats(shape, together))
        return self._first(parallel, seats, concurrency) if seats else None

    def _too_heavy(self, parallel: Parallel) -> bool:
        """Not even the largest GPUs would hold the weights, however the layers are dealt out."""
        layers = len(self._facts.layers)
        weights = self._sizes.weights(Parallel(tensor=parallel.tensor), 0, range(layers)) // parallel.pipeline
        most = max(self._usable.values(), default=0)
        heavy = weights > most and not parallel.expert_parallel
        if heavy:
            text = (
                f"CUDA out of memory: the weights take {weights / GIB:.2f} GiB of each GPU, and {most / GIB:.2f} GiB "
                "of the largest can be used."
            )
            self._decline(parallel, Refusal(code=Verdict.WEIGHTS.value, message=text))
        return heavy

    def _decline_parts(self) -> None:
        wanted = (self._goal.tensor or 1) * (self._goal.pipeline or 1)
        parts = [gpu for room in self._rooms for gpu in room.gpus if gpu.is_part]
        if wanted > 1 and parts and sum(len(room.whole.gpus) for room in self._rooms) < wanted:
            text = (
                f"MIG devices cannot work together, and {len(parts)} are all there is: CUDA shows a process only one."
            )
            parallel = Parallel(tensor=self._goal.tensor or 1, pipeline=self._goal.pipeline or 1)
            self._decline(parallel, Refusal(code="mig_devices", message=text))

    def _usable_of(self, gpu: Gpu) -> int:
        return self._usable[gpu.uuid]

    def _is_able(self, gpu: Gpu) -> bool:
        refusal = capability_refusal(self._facts.quantisation, gpu.capability)
        if refusal is not None:
            self._decline(Parallel(), Refusal(code=refusal.code, message=f"{gpu.name or gpu.uuid}: {refusal.message}"))
        return refusal is None

    def _all_shapes(self) -> list[Shape]:
        """Every shape that these rooms may have space for, the preferred first."""
        largest = max((max(1, len(room.whole.gpus)) for room in self._rooms), default=0)
        connected = max((len(island) for room in self._rooms for island in room.islands), default=0)
        found = []
        for tensor in range(1, min(largest, MOST_RANKS) + 1):
            for per_node in range(1, min(largest // tensor, len(self._facts.layers)) + 1):
                linked = tensor <= connected
                found += [Shape(tensor=tensor, per_node=per_node, nodes=nodes, linked=linked) for nodes in (1,)]
                if linked and per_node == 1 and tensor > 1:
                    found.append(Shape(tensor=tensor, linked=False))
                for nodes in self._node_counts(tensor * per_node, per_node):
                    found.append(Shape(tensor=tensor, per_node=per_node, nodes=nodes, linked=linked and tensor > 1))
        goal = self._goal
        if goal.tensor is not None and goal.tensor > largest:
            found.append(Shape(tensor=goal.tensor, per_node=goal.pipeline or 1))
        return sorted((each for each in found if goal.allows(each.parallel)), key=lambda s: preference(s, goal.prefer))

    def _node_counts(self, gpus: int, stages: int) -> Iterable[int]:
        """On how many nodes a shape is tried: from as many as the weights need."""
        most = min(sum(len(room.whole.gpus) >= gpus for room in self._rooms), len(self._facts.layers) // stages)
        forced = self._goal.pipeline
        if forced is not None:
            return [forced // stages] if forced % stages == 0 and 1 < forced // stages <= most else []
        weights = self._sizes.weights(Parallel(), 0, range(len(self._facts.layers)))
        roomiest = max((sum(sorted(map(self._usable_of, room.gpus))[-gpus:]) for room in self._rooms), default=0)
        least = max(2, -(-weights // roomiest)) if roomiest else most + 1
        return range(least, min(most, least + MORE_NODES) + 1)

    def _seats(self, shape: Shape, rooms: Sequence[Room]) -> Iterator[Seats]:
        if shape.nodes > 1:
            found = over_nodes(rooms, shape.tensor, shape.per_node, shape.nodes, self._usable_of)
            return iter((found,) if found else ())
        if shape.parallel.gpus == 1:
            return alone(rooms)
        if shape.tensor > max(len(room.gpus) for room in rooms):
            wide = spanning(rooms, shape.parallel)
            return iter((wide,) if wide else ())
        if shape.per_node == 1:
            return abreast(rooms, shape.tensor, self._usable_of, linked=shape.linked)
        rows = (in_a_row(room, shape.tensor, shape.per_node, self._usable_of) for room in rooms)
        return (row for row in rows if row is not None)

    def _sorted(self, seats: Iterator[Seats]) -> list[Seats]:
        """One of each kind, the barest first."""
        kinds: dict[object, Seats] = {}
        for each in seats:
            kinds.setdefault(each.kind, each)
        return sorted(kinds.values(), key=self._barest)

    def _barest(self, seats: Seats) -> tuple[int, int]:
        sizes = [self._usable[gpu.uuid] for gpu in seats.gpus]
        return min(sizes), sum(sizes)

    def _accepted(self, parallel: Parallel) -> tuple[Parallel, Refusal | None]:
        """The division as vLLM accepts it, with experts kept whole where only that makes it divisible."""
        if parallel not in self._accepted_as:
            shared = self._goal.shared(parallel)
            refused = refusals(self._facts, shared, self._engine)
            whole = replace(shared, expert_parallel=True)
            if (
                refused
                and self._facts.experts
                and not self._goal.forced
                and not refusals(self._facts, whole, self._engine)
            ):
                self._accepted_as[parallel] = (whole, None)
            else:
                self._accepted_as[parallel] = (shared, refused[0] if refused else None)
        return self._accepted_as[parallel]

    def _first(self, parallel: Parallel, seats: Sequence[Seats], concurrency: float) -> Instance | None:
        """The barest seats that serve; by bisection, because what serves also serves with more memory."""
        for same in self._by_speed(seats):
            best = self._attempts.on(parallel, same[-1], concurrency)
            if isinstance(best, Failure):
                if (Parallel(tensor=parallel.tensor, pipeline=parallel.pipeline), best.code) not in self._declined:
                    self._decline(parallel, best.refusal())
                continue
            low, high = 0, 0 if best.lowered else len(same) - 1
            while low < high:
                middle = (low + high) // 2
                found = self._attempts.on(parallel, same[middle], concurrency, lower=False)
                if isinstance(found, Instance):
                    best, high = found, middle
                else:
                    low = middle + 1
            return best
        return None

    def _by_speed(self, seats: Sequence[Seats]) -> list[list[Seats]]:
        """Who wants speed gets the fastest GPUs tried first."""
        if self._goal.prefer not in (Prefer.LATENCY, Prefer.THROUGHPUT):
            return [list(seats)]
        ordered = sorted(seats, key=_slowest, reverse=True)
        return [sorted(same, key=self._barest) for _, same in groupby(ordered, key=_slowest)]

    def _decline(self, parallel: Parallel, refusal: Refusal) -> None:
        plain = Parallel(tensor=parallel.tensor, pipeline=parallel.pipeline)
        declined = Declined(strategy=strategy_of(plain), parallel=plain, code=refusal.code, message=refusal.message)
        self._declined.setdefault((plain, refusal.code), declined)


def _slowest(seats: Seats) -> int:
    return min(map(gpu_bandwidth, seats.gpus))


def choose(
    facts: ModelFacts,
    asked: Asked,
    engine: Engine,
    nodes: Sequence[Node],
    goal: Goal | None = None,
    starts: Sequence[MeasuredStart] = (),
) -> Choice:
    """What to start, and why nothing else. Raises `Malformed` or `Unsupported` where the cache cannot be laid out."""
    return Chooser(facts, asked, engine, nodes, goal or Goal(), starts).choose()
