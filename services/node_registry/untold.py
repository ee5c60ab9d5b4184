"""Which changes are still to be told. Pure.

One registry, the elected one, tells; every other judges for itself and keeps what it would tell, until it hears that it
was told. So whoever is elected next goes on where the last one stopped: it tells what is missing, and nothing twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from libs.common.contracts.node_registry import NodeState
from services.node_registry.model import Change

Level = tuple[NodeState, bool]
"""A node's state, and whether it drains."""


@dataclass(frozen=True, slots=True)
class Waiting:
    number: int
    change: Change
    since: float


class Untold:
    """`most` changes wait; beyond it the oldest are dropped, for nobody is kept waiting by them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[int, Waiting] = {}
        self._of: dict[str, list[int]] = {}
        self._told: dict[str, Level] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, change: Change, *, now: float, elected: bool) -> None:
        """A node changed, as we see it. Who is not elected forgets what the others told already."""
        if not elected and self._told.get(change.node_id) == level(change):
            self._drop(change.node_id, len(self._of.get(change.node_id, ())))
            return
        if len(self._waiting) >= self._most:
            self._drop(next(iter(self._waiting.values())).change.node_id, 1)
        self._numbers += 1
        self._waiting[self._numbers] = Waiting(self._numbers, change, now)
        self._of.setdefault(change.node_id, []).append(self._numbers)

    def heard(self, node_id: str, told: Level) -> None:
        """Another registry told this: what of ours led there need not be told again."""
        self._keep(node_id, told)
        for place, number in enumerate(self._of.get(node_id, ())):
            if level(self._waiting[number].change) == told:
                self._drop(node_id, place + 1)
                return

    def presume(self, *, before: float) -> None:
        """The elected registry has told all it heard before this moment. A node of which it said nothing since we
        listen came before us: that it is there, and drains, was told then."""
        presumed: set[str] = set()
        for waiting in list(self._waiting.values()):
            if waiting.since >= before:
                return
            node_id, change = waiting.change.node_id, waiting.change
            unheard = node_id not in self._told or node_id in presumed
            if unheard and change.state is NodeState.ONLINE and self._of[node_id][0] == waiting.number:
                self._keep(node_id, level(change))
                self._drop(node_id, 1)
                presumed.add(node_id)

    def begin(self, beliefs: Iterable[Change], *, now: float) -> None:
        """We were elected: what was told of a node, and is not so, is to be told too."""
        for belief in beliefs:
            if belief.node_id not in self._of and self._told.get(belief.node_id) != level(belief):
                self.add(belief, now=now, elected=True)

    def first(self) -> Waiting | None:
        """What is to be told next, as a change from what was told last."""
        waiting = next(iter(self._waiting.values()), None)
        if waiting is None:
            return None
        told = self._told.get(waiting.change.node_id)
        return waiting if told is None else replace(waiting, change=replace(waiting.change, previous=told[0]))

    def told(self, waiting: Waiting) -> None:
        """It was told. It may have been dropped meanwhile."""
        self._keep(waiting.change.node_id, level(waiting.change))
        numbers = self._of.get(waiting.change.node_id, [])
        if waiting.number in numbers:
            self._drop(waiting.change.node_id, numbers.index(waiting.number) + 1)

    def forget(self, node_id: str) -> None:
        self._told.pop(node_id, None)
        self._drop(node_id, len(self._of.get(node_id, ())))

    def _keep(self, node_id: str, told: Level) -> None:
        self._told.pop(node_id, None)
        self._told[node_id] = told
        if len(self._told) > 4 * self._most:
            del self._told[next(iter(self._told))]

    def _drop(self, node_id: str, count: int) -> None:
        """The first so many of a node."""
        numbers = self._of.get(node_id, [])
        for number in numbers[:count]:
            del self._waiting[number]
        if len(numbers) > count:
            self._of[node_id] = numbers[count:]
        else:
            self._of.pop(node_id, None)


def level(change: Change) -> Level:
    return change.state, change.draining
