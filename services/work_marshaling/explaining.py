"""Why an item is not running, in words: from the clauses that decide, evaluated wholly instead of up to the first."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.common.contracts.work_explained import Exclusion, NodeExplained, SmallestChange
from libs.hardware.matching import Lack
from services.work_marshaling.matching import BLACKLISTED, Wanted, badness, lacks, lasting
from services.work_marshaling.nodes import Node, Nodes

Found = tuple[Node, Sequence[Lack]]


def unsatisfiable(asked: Wanted, nodes: Iterable[Node]) -> str | None:
    """Why no node that is known could ever run it, however long one waits. None when one could."""
    nearest: Found | None = None
    count = 0
    for node in nodes:
        count += 1
        lacked = [lack for lack in lacks(asked, node) if not lack.passing]
        if asked.external or not lacked:
            return None
        if nearest is None or len(lacked) < len(nearest[1]):
            nearest = (node, lacked)
    if asked.external:
        return None
    if nearest is None:
        return "no node is known"
    return f"none of {count} known nodes could run it; the nearest is {nearest[0].node_id}: {_words(nearest[1])}"


class Possible:
    """Remembers what is unsatisfiable as long as the nodes stay what they are: most items ask for the same."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._version = -1
        self._known: dict[tuple[str, str | None, str], str | None] = {}

    def why_not(self, asked: Wanted) -> str | None:
        if self._version != self._nodes.version:
            self._version = self._nodes.version
            self._known.clear()
        key = (asked.demand.work_type, asked.demand.model_name, asked.demand.needs)
        if key not in self._known:
            self._known[key] = unsatisfiable(asked, self._nodes.all())
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Explained:
    nodes: tuple[NodeExplained, ...]
    smallest_change: SmallestChange | None


def explained(
    asked: Wanted, nodes: Sequence[Node], now_taken: Callable[[Wanted, Node], Lack | None], *, most: int
) -> Explained:
    """`now_taken`: why a node that satisfies every clause cannot take one more at this moment."""
    every = [(node, list(lacks(asked, node))) for node in nodes]
    overruled = _overruled(every)
    found: list[Found] = []
    for node, lacked in every:
        able = not lacked or node is overruled
        taken = now_taken(asked, node) if able else None
        found.append((node, [] if able and taken is None else lacked if taken is None else [taken]))
    found.sort(key=_distance)
    shown = tuple(NodeExplained(node_id=node.node_id, excluded_by=tuple(map(_told, by))) for node, by in found[:most])
    return Explained(shown, smallest_change(asked, found[0]) if found and found[0][1] else None)


def _overruled(every: Sequence[tuple[Node, Sequence[Lack]]]) -> Node | None:
    """When everybody who could is on the blacklist: the least bad, which is used all the same."""
    if any(not lacked for _, lacked in every):
        return None
    listed = [node for node, lacked in every if all(lack.field == BLACKLISTED for lack in lacked)]
    return min(listed, key=lambda node: (badness(node), node.node_id), default=None)


def smallest_change(asked: Wanted, found: Found) -> SmallestChange:
    node, lacked = found
    return SmallestChange(node_id=node.node_id, changes=tuple(_change(asked, node, lack) for lack in lacked))


def _distance(found: Found) -> tuple[bool, int, int, int, str]:
    """Whom waiting helps first, then by how many clauses, then by how much is missing."""
    node, lacked = found
    hard = sum(not lack.passing for lack in lacked)
    return lasting(lacked), hard, len(lacked), -max((lack.enough or 0 for lack in lacked), default=0), node.node_id


def _told(lack: Lack) -> Exclusion:
    return Exclusion(clause=lack.field, reason=lack.reason, passing=lack.passing, enough=lack.enough)


def _words(lacked: Sequence[Lack]) -> str:
    return "; ".join(map(str, lacked))


def _change(asked: Wanted, node: Node, lack: Lack) -> str:
    told = _CHANGES.get(lack.field)
    if told is not None:
        return told.format(node=node.node_id, model=asked.demand.model_name, work_type=asked.demand.work_type)
    if lack.enough is not None:
        return (
            f"ask for `{lack.field}` of at most {lack.enough}, or wait"
            if lack.passing
            else (f"ask for `{lack.field}` of at most {lack.enough}")
        )
    return f"leave out `{lack.field}`, or change it: {lack.reason}"


_CHANGES: Mapping[str, str] = {
    "node_ids": "add {node} to `node_ids`",
    "avoid_node_ids": "take {node} out of `avoid_node_ids`",
    "agent": "start a node agent on {node}",
    "state": "wait until {node} can be reached and trusted again",
    "draining": "end the drain of {node}",
    "blacklist": "wait for the parole of {node}, or take it off the blacklist",
    "work_type": "run something on {node} that does work of type {work_type}",
    "model_name": "load the model {model} on {node}",
    "slots": "wait until a slot of {node} is free",
    "quota": "wait until {node} has done what it holds",
    "tried": "wait for a node where it did not fail before",
    "company": "wait until the leases of {node} are over",
    "hardware": "start a resource detector on {node}",
    "requires_gpu": "give {node} a GPU that works, or leave out what is asked of GPUs",
}
