"""Our own door into WORK_IN: items that arrive together share one durable message."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from libs.common.bus.bus import Bus
from libs.common.contracts.work_marshaling import SUBMITTED, WorkBatch
from libs.common.errors import Internal, MeshError
from libs.common.log.group_commit import GroupCommit
from services.work_marshaling.model import Submission

MOST_BYTES = 450_000
MOST_ITEMS = 10_000
RECEIPT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where the item lies in WORK_IN. From here on it is not lost."""

    sequence: int
    index: int


@dataclass(slots=True, eq=False)
class _Waiting:
    item: Submission
    message_id: str
    ticket: asyncio.Future[Ticket] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Submissions:
    def __init__(self, bus: Bus, new_id: Callable[[], str]) -> None:
        self._bus = bus
        self._new_id = new_id
        self._commit: GroupCommit[_Waiting] = GroupCommit(most_bytes=MOST_BYTES, most_steps=MOST_ITEMS)

    def add(self, item: Submission, weight: int) -> asyncio.Future[Ticket]:
        """The receipt, or what `Bus.append` raised: `StreamFull`, `TimedOut` (it may be there), `Disconnected`."""
        waiting = _Waiting(item, self._new_id())
        self._commit.add(waiting, weight)
        return waiting.ticket

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._commit.run(self._write)

    async def _write(self, waiting: Sequence[_Waiting]) -> None:
        batch = WorkBatch.model_construct(items=tuple(each.item for each in waiting))
        try:
            receipt = await self._bus.append(
                SUBMITTED, batch, message_id=waiting[0].message_id, timeout=RECEIPT_SECONDS
            )
        except MeshError as error:
            for each in waiting:
                _fail(each.ticket, error)
        except BaseException:
            for each in waiting:
                _fail(each.ticket, Internal("internal error"))
            raise
        else:
            for index, each in enumerate(waiting):
                if not each.ticket.done():
                    each.ticket.set_result(Ticket(receipt.sequence, index))


def _fail(ticket: asyncio.Future[Ticket], error: MeshError) -> None:
    """Whoever asked may have gone: then nobody is there to be told."""
    if not ticket.done():
        ticket.set_exception(error)
        ticket.exception()
