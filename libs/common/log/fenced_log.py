"""The writer's side of the log: take over, append, checkpoint, purge."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NoReturn, TypeVar

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.transport import Expect, Receipt, Stored
from libs.common.clock import Clock
from libs.common.contracts.base import Topic, Written
from libs.common.contracts.log import LogEpoch, LogRecord
from libs.common.contracts.streams import Stream
from libs.common.errors import Disconnected, MeshError, TimedOut, Unavailable, WrongRevision
from libs.common.log.epochs import epoch_id, told_epoch

R = TypeVar("R", bound=LogRecord)

PATIENCE_SECONDS = 60.0

_log = structlog.get_logger()


class SteppedDown(MeshError):
    """This writer may write no more. `fenced`: because another took over; otherwise its receipts stayed away."""

    code = "stepped_down"
    status = 503
    retryable = True

    def __init__(self, message: str, /, *, fenced: bool) -> None:
        super().__init__(message, fenced=fenced)
        self.fenced = fenced


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every record carries."""

    epoch: int
    n: int
    at: datetime


class FencedLog(Generic[R]):
    """One term of one writer. `holder` must be different for every process that was ever started.

    One append is in flight at a time. Whatever ends the term raises `SteppedDown`, then and at every later call.
    """

    def __init__(
        self,
        bus: Bus,
        stream: Stream,
        *,
        epochs: Topic[LogEpoch],
        records: Topic[R],
        holder: str,
        clock: Clock,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._epochs = epochs
        self._records = records
        self._holder = holder
        self._clock = clock
        self._patience = patience_seconds
        self._epoch = 0
        self._fence = 0
        self._n = 0
        self._ended: SteppedDown | None = None
        self._in_flight = asyncio.Lock()

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def fence(self) -> int:
        """The place of the own epoch record in the stream."""
        return self._fence

    async def take_over(self, origins: Mapping[str, datetime]) -> int:
        """Become the writer; whoever was it is fenced from here on. Returns the epoch.

        Raises `WrongRevision` when another took over at the same moment, and whatever `Bus.append` raises: then it is
        not known whether the take-over took place, and it may be tried again.
        """
        last = await self._bus.last(self._stream, self._epochs)
        await self._write_epoch(self._next_epoch(last), last.sequence if last else 0, origins, checkpoint=False)
        _log.info("log_taken_over", stream=self._stream.name, epoch=self._epoch, sequence=self._fence)
        return self._epoch

    async def append(self, make: Callable[[Stamp], R | Written[R]]) -> Receipt:
        """Write one record. Returns when it is on disk.

        Raises `SteppedDown` when another took over or no receipt came in time, `StreamFull` (the term goes on).
        """
        async with self._in_flight:
            self._refuse_if_ended()
            self._n += 1
            record = make(Stamp(self._epoch, self._n, self._clock.now()))
            expect = Expect(sequence=self._fence, subject=self._epochs.subject)
            try:
                return await self._bus.append(
                    self._records,
                    record,
                    message_id=f"{self._epoch}.{self._n}",
                    expect=expect,
                    timeout=self._patience,
                )
            except (WrongRevision, TimedOut, Disconnected) as error:
                await self._give_up(error)

    async def begin_checkpoint(self, origins: Mapping[str, datetime]) -> None:
        """Start a new epoch of the same writer; its records up to one of kind `done` are to hold the whole state."""
        async with self._in_flight:
            self._refuse_if_ended()
            try:
                await self._write_epoch(self._epoch + 1, self._fence, origins, checkpoint=True)
            except (WrongRevision, TimedOut, Disconnected) as error:
                await self._give_up(error)

    async def purge(self) -> None:
        """Forget what is older than the newest epoch record. Only after a finished checkpoint."""
        self._refuse_if_ended()
        await self._bus.purge(self._stream, below=self._fence)

    async def confirm(self) -> None:
        """Ask whether this is still the writer: one that appends nothing would not notice that it was replaced.

        Raises `SteppedDown` when another took over, `Unavailable`.
        """
        async with self._in_flight:
            self._refuse_if_ended()
            last = await self._bus.last(self._stream, self._epochs)
            if last is None or last.sequence != self._fence:
                raise await self._replaced()

    async def _write_epoch(
        self, number: int, expected: int, origins: Mapping[str, datetime], *, checkpoint: bool
    ) -> None:
        told = LogEpoch(
            epoch=number, holder=self._holder, at=self._clock.now(), checkpoint=checkpoint, origins=dict(origins)
        )
        receipt = await self._bus.append(
            self._epochs,
            told,
            message_id=epoch_id(told),
            expect=Expect(sequence=expected, subject=self._epochs.subject),
            timeout=self._patience,
        )
        self._epoch, self._fence, self._n = number, receipt.sequence, 0

    def _refuse_if_ended(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _next_epoch(self, last: Stored | None) -> int:
        """Greater than any before: an epoch never exceeds the sequence of its own record."""
        if last is None:
            return 1
        told = told_epoch(self._bus, self._epochs, last)
        return last.sequence + 1 if told is None else told.epoch + 1

    async def _give_up(self, error: MeshError) -> NoReturn:
        if isinstance(error, WrongRevision):
            raise await self._replaced() from error
        told = f"no receipt from the log within {self._patience:g} s"
        raise self._step_down(told, fenced=False) from error

    async def _replaced(self) -> SteppedDown:
        try:
            last = await self._bus.last(self._stream, self._epochs)
        except Unavailable as error:
            return self._step_down(f"refused, and it cannot be told by whom: {error.message}", fenced=False)
        if last is None or last.sequence < self._fence:
            return self._step_down("the stream was made anew", fenced=False)
        if told_epoch(self._bus, self._epochs, last) is None:
            return self._step_down("a stranger wrote where only epochs belong", fenced=False)
        return self._step_down("another writer took over the log", fenced=True)

    def _step_down(self, reason: str, *, fenced: bool) -> SteppedDown:
        self._ended = SteppedDown(f"{self._stream.name}: {reason} (epoch {self._epoch})", fenced=fenced)
        return self._ended
