"""The queue of pending items and the choice of nodes for them: strictly by priority, then in order of submission.

Items of equal demand share a line, so that a turn costs no more with a hundred thousand items waiting than with ten.
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.common.contracts.work_marshaling import EXTERNAL
from services.work_marshaling.matching import Demand, demand, rank, why_not
from services.work_marshaling.model import WorkItem
from services.work_marshaling.nodes import Node, Nodes
from services.work_marshaling.slots import Slots

Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Choice:
    work_id: str
    node_id: str


@dataclass(slots=True)
class _Line:
    """The pending items of one demand. `eligible` holds for one version of the nodes."""

    asked: Demand
    waiting: list[tuple[Place, str]] = field(default_factory=list)
    eligible: tuple[Node, ...] = ()
    version: int = -1


@dataclass(slots=True)
class _Turn:
    """One distribution of free slots. `candidates` are per line, best first, with the rank they were put in with."""

    free: Mapping[str, Slots]
    candidates: dict[Demand, list[tuple[tuple[bool, bool, bool, int, str], Node]]] = field(default_factory=dict)


def place(item: WorkItem) -> Place:
    """Where an item stands in the queue; the smallest is next."""
    return (item.spec.priority, item.sequence, item.index)


class Queue:
    """Removal is lazy: an entry in a line counts only while `_member` says the same."""

    def __init__(self) -> None:
        self._lines: dict[Demand, _Line] = {}
        self._member: dict[str, tuple[Demand, Place]] = {}
        self._waiting: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._member)

    def __contains__(self, work_id: str) -> bool:
        return work_id in self._member

    @property
    def by_priority(self) -> Mapping[int, int]:
        """How many wait, by priority."""
        return self._waiting

    def longest_waiting(self) -> str | None:
        """The item that was put in first."""
        return next(iter(self._member), None)

    def add(self, item: WorkItem) -> None:
        if item.work_id in self._member:
            return
        asked, where = demand(item), place(item)
        self._member[item.work_id] = (asked, where)
        self._waiting[item.spec.priority] += 1
        line = self._lines.get(asked)
        if line is None:
            line = self._lines[asked] = _Line(asked)
        heapq.heappush(line.waiting, (where, item.work_id))

    def remove(self, work_id: str) -> None:
        gone = self._member.pop(work_id, None)
        if gone is not None:
            self._waiting[gone[1][0]] -= 1

    def choose(self, nodes: Nodes, free: Mapping[str, Slots], *, most: int) -> list[Choice]:
        """Who gets what now. The chosen leave the queue. `free` is used up."""
        turn = _Turn(free)
        heads = [(*head, line) for line in tuple(self._lines.values()) if (head := self._head(line)) is not None]
        heapq.heapify(heads)  # places are unique, so that lines are never compared
        chosen: list[Choice] = []
        while heads and len(chosen) < most:
            _, work_id, line = heads[0]
            node_id = self._node_for(line, nodes, turn)
            if node_id is not None:
                chosen.append(Choice(work_id, node_id))
                self.remove(work_id)
            head = None if node_id is None else self._head(line)
            if head is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (*head, line))
        return chosen

    def _head(self, line: _Line) -> tuple[Place, str] | None:
        """The first entry that still counts; a line that has none is given up."""
        while line.waiting:
            where, work_id = line.waiting[0]
            if self._member.get(work_id) == (line.asked, where):
                return where, work_id
            heapq.heappop(line.waiting)
        self._lines.pop(line.asked, None)
        return None

    def _node_for(self, line: _Line, nodes: Nodes, turn: _Turn) -> str | None:
        if line.asked.external:
            return EXTERNAL
        candidates = turn.candidates.get(line.asked)
        if candidates is None:
            candidates = turn.candidates[line.asked] = self._candidates(line, nodes, turn)
        while candidates:
            ranked, node = candidates[0]
            left = turn.free[node.node_id].free(line.asked.work_type)
            if left < 1:
                heapq.heappop(candidates)
            elif -ranked[3] != left:
                heapq.heapreplace(candidates, (rank(line.asked, node, left), node))
            else:
                turn.free[node.node_id].take(line.asked.work_type)
                return node.node_id
        return None

    def _candidates(
        self, line: _Line, nodes: Nodes, turn: _Turn
    ) -> list[tuple[tuple[bool, bool, bool, int, str], Node]]:
        if line.version != nodes.version:
            line.eligible = tuple(node for node in nodes.all() if why_not(line.asked, node) is None)
            line.version = nodes.version
        ranked = [
            (rank(line.asked, node, left), node)
            for node in line.eligible
            if node.node_id in turn.free and (left := turn.free[node.node_id].free(line.asked.work_type)) > 0
        ]
        heapq.heapify(ranked)
        return ranked
