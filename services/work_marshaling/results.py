"""What workers told: read back from WORK_OUT, or remembered for as long as it is most likely to be asked for."""

from collections import OrderedDict

from libs.common.bus.bus import Bus, Stored
from libs.common.contracts.base import Json
from libs.common.contracts.streams import WORK_OUT
from libs.common.contracts.work_marshaling import COMPLETED, WorkCompleted, WorkStatus
from libs.common.contracts.work_outcomes import OUTCOMES
from libs.common.errors import NotFound
from services.work_marshaling.large import Large
from services.work_marshaling.model import WorkItem

SMALL_BYTES = 4096
REMEMBERED = 5_000


def completed(bus: Bus, stored: Stored) -> tuple[WorkCompleted, ...]:
    """Which attempts a message of WORK_OUT says succeeded. Raises `Malformed`."""
    if stored.subject == OUTCOMES.subject:
        return bus.decode(OUTCOMES, stored).completed
    return (bus.decode(COMPLETED, stored),)


class Results:
    """Small results that were just heard stay here: the archive and whoever waited ask for them at once."""

    def __init__(self, bus: Bus, large: Large) -> None:
        self._bus = bus
        self._large = large
        self._recent: OrderedDict[tuple[int, str], Json] = OrderedDict()

    def heard(self, out_seq: int, told: WorkCompleted, size: int) -> None:
        if size <= SMALL_BYTES and told.result_ref is None:
            self._recent[out_seq, told.work_id] = told.result
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)

    async def of(self, item: WorkItem) -> Json:
        """Raises `NotFound` when it is kept no longer, `Unavailable`."""
        if item.out_seq is not None and (item.out_seq, item.work_id) in self._recent:
            return self._recent[item.out_seq, item.work_id]
        stored = None if item.out_seq is None else await self._bus.message(WORK_OUT, item.out_seq)
        outcomes = () if stored is None else completed(self._bus, stored)
        told = next((each for each in outcomes if each.work_id == item.work_id), None)
        if told is None:
            raise NotFound(f"the result of {item.work_id} is kept no longer", status=item.status.value)
        return told.result if told.result_ref is None else await self._large.content(told.result_ref)

    async def small(self, item: WorkItem) -> Json:
        """None when there is none, or none that is small. Raises what `of` raises."""
        if item.status is not WorkStatus.COMPLETED or item.result_bytes > SMALL_BYTES:
            return None
        return await self.of(item)
