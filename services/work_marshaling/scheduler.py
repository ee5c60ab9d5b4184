"""The queue of pending items and the choice of nodes for them. Who is next: `order`. Which node: `matching`.

Items of equal demand share a line, so that a turn costs no more with a hundred thousand items waiting than with ten.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from libs.common.contracts.work_marshaling import EXTERNAL
from libs.hardware.matching import Lack
from services.work_marshaling.matching import (
    BLACKLISTED,
    Demand,
    Rank,
    Wanted,
    badness,
    demand,
    rank,
    wanted,
    why_not,
)
from services.work_marshaling.model import WorkItem
from services.work_marshaling.nodes import Node, Nodes
from services.work_marshaling.order import Line, Order, Place
from services.work_marshaling.pace import NONE, Kind
from services.work_marshaling.slots import Slots

EMPTY_LINES_KEPT = 64
DESPITE = "every node that could run it is on the blacklist; this one is the least bad"


@dataclass(frozen=True, slots=True)
class Choice:
    work_id: str
    node_id: str
    despite: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """1 is next. `level`: the priority with what waiting has improved."""

    position: int
    level: int
    waited_seconds: float


@dataclass(slots=True, eq=False)
class _Asked(Line):
    """The pending items of one demand. `eligible` holds for one version of the nodes.

    So does `distrusted`: who would be eligible, were it not on the blacklist.
    """

    asked: Wanted = field(kw_only=True)
    eligible: dict[str, Node] = field(default_factory=dict)
    distrusted: dict[str, Node] = field(default_factory=dict)
    version: int = -1

    def usable(self) -> Mapping[str, Node]:
        """Without anybody to trust, the least bad of those on the blacklist."""
        if self.eligible or not self.distrusted:
            return self.eligible
        name = min(self.distrusted, key=lambda name: (badness(self.distrusted[name]), name))
        return {name: self.distrusted[name]}


@dataclass(frozen=True, slots=True)
class _Member:
    line: _Asked
    place: Place
    priority: int
    submitter: str


@dataclass(slots=True)
class _Turn:
    """One distribution of free slots. `candidates` are per line, best first, with the rank they were put in with."""

    free: Mapping[str, Slots]
    aboard: Callable[[str], int]
    trouble: Callable[[str], int]
    slowness: Callable[[Kind], Mapping[str, int]]
    candidates: dict[Demand, list[tuple[Rank, Node]]] = field(default_factory=dict)


def place(item: WorkItem) -> Place:
    """Where an item stands among those of its submitter: by when it could have run at first."""
    ready = item.submitted_at if item.spec.not_before is None else max(item.submitted_at, item.spec.not_before)
    return (ready.timestamp(), item.sequence, item.index)


class Queue:
    """`ageing_seconds`: after so long an item counts as one priority better. `poison_nodes`: as in `Policy`.

    A suspect (see `matching.company`) that finds no node of its own has one kept free for it: nothing else is given to
    that node until its leases are over. One node per line of suspects, and of all nodes a quarter at most.
    """

    def __init__(self, *, ageing_seconds: float, poison_nodes: int) -> None:
        self._poison_nodes = poison_nodes
        self._kept: dict[str, Demand] = {}
        self._lines: dict[Demand, _Asked] = {}
        self._empty: OrderedDict[Demand, _Asked] = OrderedDict()
        self._members: dict[str, _Member] = {}
        self._waiting: Counter[int] = Counter()
        self._order = Order(ageing_seconds=ageing_seconds, waits=self._waits)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, work_id: str) -> bool:
        return work_id in self._members

    @property
    def by_priority(self) -> Mapping[int, int]:
        """How many wait, by priority."""
        return self._waiting

    def longest_waiting(self) -> str | None:
        """The item that was put in first."""
        return next(iter(self._members), None)

    def add(self, item: WorkItem) -> None:
        if item.work_id in self._members:
            return
        asked, where = demand(item, self._poison_nodes), place(item)
        line = self._lines.get(asked)
        if line is None:
            line = self._empty.pop(asked, None) or _Asked(asked=wanted(item, self._poison_nodes))
            self._lines[asked] = line
        priority, submitter = item.spec.priority, item.spec.submitter or ""
        self._members[item.work_id] = _Member(line, where, priority, submitter)
        self._waiting[priority] += 1
        self._order.add(line, item.work_id, where, priority, submitter)

    def remove(self, work_id: str) -> None:
        gone = self._members.pop(work_id, None)
        if gone is not None:
            self._waiting[gone.priority] -= 1

    def choose(
        self,
        nodes: Nodes,
        free: Mapping[str, Slots],
        *,
        now: float,
        most: int,
        aboard: Callable[[str], int] = lambda _: 0,
        trouble: Callable[[str], int] = lambda _: 0,
        slowness: Callable[[Kind], Mapping[str, int]] = lambda _: NONE,
    ) -> list[Choice]:
        """Who gets what now. The chosen leave the queue. `free` is used up.

        `now`: seconds of the calendar. `aboard`: how many leases a node has. `trouble`: how badly it fails of late.
        `slowness`: of a kind of work, how slow which nodes are, see `pace`.
        """
        self._order.pass_time(now)
        self._give_up_kept()
        turn = _Turn(free, aboard, trouble, slowness)
        heads = [(*head, line) for line in tuple(self._lines.values()) if (head := self._head(line)) is not None]
        heapq.heapify(heads)  # places are unique, so that lines are never compared
        chosen: list[Choice] = []
        while heads and len(chosen) < most:
            key, work_id, line = heads[0]
            head = self._head(line)
            if head is not None and head[0] == key:
                node_id = self._node_for(line, nodes, turn)
                if node_id is None:
                    heapq.heappop(heads)
                    continue
                chosen.append(Choice(work_id, node_id, DESPITE if node_id in line.distrusted else None))
                self._order.served(key, self._members[work_id].submitter)
                self.remove(work_id)
                head = self._head(line)
            if head is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (*head, line))
        return chosen

    def now_taken(self, asked: Wanted, node: Node, nodes: Nodes, free: Mapping[str, Slots]) -> Lack | None:
        """Why a node that satisfies every clause cannot take one more item of this demand at this moment."""
        tried, work_type, company = asked.demand.tried, asked.demand.work_type, asked.demand.company
        others = (each for each in nodes.all() if each.node_id not in tried)
        if node.node_id in tried and any(why_not(asked, each) is None for each in others):
            return Lack("tried", "an attempt came to nothing there, and there are other nodes", passing=True)
        if node.node_id in self._kept and not company:
            return Lack("company", "it is kept free for an item that may have killed a node", passing=True)
        slots = free.get(node.node_id)
        if slots is None or slots.has(work_type) < 1:
            return Lack("slots", f"no slot for {work_type} is free", passing=True)
        if slots.quota_left < 1:
            return Lack("quota", "it failed fast, and may hold no more at once than it does", passing=True)
        if slots.free(work_type, None, company) < 1:
            return Lack("company", "items that may have killed a node run apart from others", passing=True)
        if slots.free(work_type, asked.memory, company) < 1:
            return Lack("memory", "what it has free is promised to others", passing=True)
        return None

    def stands(self, work_id: str, now: float) -> Standing | None:
        """Where an item stands; None when it does not wait here. Looks at every item that waits."""
        member = self._members.get(work_id)
        if member is None:
            return None
        self._order.pass_time(now)
        level = self._order.level(member.priority, member.place)
        ahead = self._order.ahead(self._lines.values(), level, member.submitter, member.place)
        return Standing(position=ahead + 1, level=level, waited_seconds=max(0.0, now - member.place[0]))

    def _waits(self, work_id: str, where: Place, line: Line) -> bool:
        member = self._members.get(work_id)
        return member is not None and member.line is line and member.place == where

    def _head(self, line: _Asked) -> tuple[tuple[int, int, Place], str] | None:
        """A line in which nothing waits is given up; the last ones are kept, with what is known of the nodes.

        On an idle queue every item would else look at all nodes anew.
        """
        head = self._order.head(line)
        if head is None and self._lines.pop(line.asked.demand, None) is not None:
            self._empty[line.asked.demand] = line
            if len(self._empty) > EMPTY_LINES_KEPT:
                self._empty.popitem(last=False)
        return head

    def _node_for(self, line: _Asked, nodes: Nodes, turn: _Turn) -> str | None:
        asked = line.asked
        if asked.external:
            return EXTERNAL
        candidates = turn.candidates.get(asked.demand)
        if candidates is None:
            candidates = turn.candidates[asked.demand] = self._candidates(line, nodes, turn)
        while candidates:
            (_, _, _, trouble, slowness, minus_left, _), node = candidates[0]
            left = self._left(asked, node.node_id, turn)
            if left < 1:
                heapq.heappop(candidates)
            elif -minus_left != left and len(candidates) > 1:
                heapq.heapreplace(candidates, (rank(asked, node, left, trouble, slowness), node))
            else:
                turn.free[node.node_id].take(asked.demand.work_type, memory=asked.memory, company=asked.demand.company)
                self._kept.pop(node.node_id, None)
                return node.node_id
        if asked.demand.company:
            self._keep_one_free(line, nodes, turn)
        return None

    def _candidates(self, line: _Asked, nodes: Nodes, turn: _Turn) -> list[tuple[Rank, Node]]:
        """Nodes where the item failed before are left out as long as there is another one."""
        self._look_at_nodes(line, nodes)
        usable = line.usable()
        untried = [name for name in usable if name not in line.asked.demand.tried]
        able = {name: usable[name] for name in untried} if untried else usable
        slow = turn.slowness((line.asked.demand.work_type, line.asked.demand.model_name))
        ranked = [
            (rank(line.asked, node, left, turn.trouble(node_id), slow.get(node_id, 0)), node)
            for node_id in turn.free
            if (node := able.get(node_id)) is not None and (left := self._left(line.asked, node_id, turn)) > 0
        ]
        heapq.heapify(ranked)
        return ranked

    def _left(self, asked: Wanted, node_id: str, turn: _Turn) -> int:
        """How many more items of this demand the node takes."""
        if not asked.demand.company and node_id in self._kept:
            return 0
        return turn.free[node_id].free(asked.demand.work_type, asked.memory, asked.demand.company)

    def _keep_one_free(self, line: _Asked, nodes: Nodes, turn: _Turn) -> None:
        asked = line.asked.demand
        mine = [node_id for node_id, demanded in self._kept.items() if demanded == asked]
        usable = line.usable()
        if any(node_id in usable for node_id in mine):
            return
        for node_id in mine:
            del self._kept[node_id]
        if len(self._kept) >= max(1, len(nodes) // 4):
            return
        able = [node_id for node_id in usable if node_id not in self._kept]
        fresh = [node_id for node_id in able if node_id not in asked.tried] or able
        if fresh:
            self._kept[min(fresh, key=lambda node_id: (turn.aboard(node_id), node_id))] = asked

    def _give_up_kept(self) -> None:
        """Nodes that are kept free for nobody any more."""
        for node_id in [node_id for node_id, asked in self._kept.items() if asked not in self._lines]:
            del self._kept[node_id]

    def _look_at_nodes(self, line: _Asked, nodes: Nodes) -> None:
        """Only at those that changed since this line looked last."""
        if line.version < nodes.complete_since:
            line.eligible.clear()
            line.distrusted.clear()
            line.version = -1
        for node in nodes.changed_since(line.version):
            line.eligible.pop(node.node_id, None)
            line.distrusted.pop(node.node_id, None)
            lack = why_not(line.asked, node)
            if lack is None:
                line.eligible[node.node_id] = node
            elif lack.field == BLACKLISTED:
                line.distrusted[node.node_id] = node
        line.version = nodes.version
