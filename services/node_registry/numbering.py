"""Numbers that grow from one elected registry to the next, whatever their clocks say. Pure.

The archive keeps the row whose number is higher, so a registry that was replaced and does not know it yet cannot put
old rows over new ones.
"""

_PER_TERM = 20
"""Bits: a term has room for a million numbers, and the next one begins at least as many milliseconds later."""


def next_term(*, now_milliseconds: int, last: int) -> int:
    """Terms follow the calendar, so that they grow even where the last one was lost with its server."""
    return max(now_milliseconds, last + 1)


class Numbers:
    """The numbers of one term."""

    def __init__(self, term: int) -> None:
        self.term = term
        self._last = term << _PER_TERM

    def next(self) -> int:
        self._last += 1
        return self._last
