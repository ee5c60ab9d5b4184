"""How long nodes take for work of a kind, from how long their attempts took: slow ones come after quick ones.

Only attempts that completed count, from the moment at which they were given away: by one clock, whatever the nodes' own
say. Of each node and kind of work (its type and model) the mean of the logarithm of the seconds is kept, the newest
counting an eighth, so that one long item among many does little. It says something from the fifth on, and nothing any
more ten minutes after the last. Less than a tenth of a second counts as that: what is so quick is decided by other
things than the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

Kind = tuple[str, str | None]

NEWEST_COUNTS = 1 / 8
ENOUGH = 5
LEAST_SECONDS = 0.1
KEPT_SECONDS = 600.0
MOST_SLOWNESS = 9
MOST_KINDS = 1000
NONE: Mapping[str, int] = {}


@dataclass(slots=True)
class _Pace:
    """`level`: the logarithm of seconds, to the base 2."""

    level: float
    heard: int
    at: float


class Paces:
    def __init__(self) -> None:
        self._by_kind: dict[Kind, dict[str, _Pace]] = {}

    def took(self, node_id: str, kind: Kind, seconds: float, at: float) -> None:
        level = log2(max(seconds, LEAST_SECONDS))
        known = self._by_kind.get(kind)
        if known is None:
            known = self._by_kind[kind] = {}
            if len(self._by_kind) > MOST_KINDS:
                del self._by_kind[next(iter(self._by_kind))]
        pace = known.get(node_id)
        if pace is None or at - pace.at > KEPT_SECONDS:
            known[node_id] = _Pace(level, 1, at)
            return
        pace.heard += 1
        pace.level += (level - pace.level) * max(NEWEST_COUNTS, 1 / pace.heard)
        pace.at = at

    def slowness(self, kind: Kind, now: float) -> Mapping[str, int]:
        """How many times twice as long as the quickest a node takes, whole times. Those of which too little is known
        are not named: they count as quick, so that more becomes known."""
        known = self._by_kind.get(kind)
        if known is None or len(known) < 2:
            return NONE
        told = {
            node_id: pace.level
            for node_id, pace in known.items()
            if pace.heard >= ENOUGH and now - pace.at <= KEPT_SECONDS
        }
        if len(told) < 2:
            return NONE
        quickest = min(told.values())
        return {node_id: min(MOST_SLOWNESS, int(level - quickest + 1e-9)) for node_id, level in told.items()}

    def forget(self, node_id: str) -> None:
        for known in self._by_kind.values():
            known.pop(node_id, None)
