"""The whole state as facts, in pieces that fit into one record each."""

from collections.abc import Iterator

from libs.common.contracts.work_log import Fact
from services.work_marshaling.facts import facts_of, weight
from services.work_marshaling.store import Snapshot

MOST_BYTES = 400_000
_PAUSE_EVERY = 500


def chunks(snapshot: Snapshot) -> Iterator[tuple[Fact, ...]]:
    """Lazily: each piece is made when it is asked for, so that its maker can pause in between."""
    piece: list[Fact] = []
    total = 0
    for fact in _all(snapshot):
        heavy = weight(fact)
        if piece and (total + heavy > MOST_BYTES or len(piece) >= _PAUSE_EVERY):
            yield tuple(piece)
            piece, total = [], 0
        piece.append(fact)
        total += heavy
    if piece:
        yield tuple(piece)


def _all(snapshot: Snapshot) -> Iterator[Fact]:
    for item in snapshot.items:
        yield from facts_of(item)
    yield from snapshot.others
