"""Which leader of work marshaling is the newest that was heard of."""

from datetime import datetime

LOGS_REMEMBERED = 8


class Leaders:
    """Epochs count within one log; one that was made anew begins again."""

    def __init__(self) -> None:
        self._newest: dict[datetime, int] = {}

    def replaced(self, log_made: datetime | None, epoch: int) -> int | None:
        """The epoch of who took this sender's place; None when it is the newest that was heard of."""
        if log_made is None:
            return None
        newest = self._newest.pop(log_made, epoch)
        self._newest[log_made] = max(newest, epoch)
        if len(self._newest) > LOGS_REMEMBERED:
            del self._newest[next(iter(self._newest))]
        return newest if newest > epoch else None
