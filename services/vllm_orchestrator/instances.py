"""All instances as the log says they are, with what was told of them last."""

from collections import deque

from libs.common.contracts.log import LogEpoch
from libs.common.contracts.vllm_instances import MOST_EVENTS, Instance, InstanceEvent, Stranded, VllmRecord

REMEMBERED = 10_000
"""Names that are no more, and how far they had counted."""


class Instances:
    """A replay fills it; whoever leads goes on with it."""

    def __init__(self) -> None:
        self.by_name: dict[str, Instance] = {}
        self.events: dict[str, deque[InstanceEvent]] = {}
        self.generations: dict[str, int] = {}
        self.stranded: dict[str, Stranded] = {}

    def begin_epoch(self, epoch: LogEpoch) -> None:
        return None

    def begin_checkpoint(self) -> None:
        self.by_name.clear()
        self.events.clear()
        self.generations.clear()
        self.stranded.clear()

    def restore(self, piece: VllmRecord) -> None:
        self.apply(piece, 0)

    def apply(self, record: VllmRecord, sequence: int) -> None:
        for instance in record.kept:
            self.by_name[instance.name] = instance
        for event in record.events:
            self.events.setdefault(event.name, deque(maxlen=MOST_EVENTS)).append(event)
        for name in record.gone:
            self.by_name.pop(name, None)
            self.events.pop(name, None)
        self.stranded |= {each.reservation_id: each for each in record.stranded}
        for reservation_id in record.settled:
            self.stranded.pop(reservation_id, None)
        self.generations |= record.generations
        while len(self.generations) > REMEMBERED:
            del self.generations[next(iter(self.generations))]
