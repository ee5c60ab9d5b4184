"""The reader's side of the log: fills a memory with what was decided, and goes on as the log grows."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import structlog

from libs.common.bus.bus import Bus
from libs.common.bus.codec import decode
from libs.common.bus.transport import MESSAGE_ID_HEADER, Stored
from libs.common.contracts.base import Topic
from libs.common.contracts.log import LogEpoch, LogRecord, RecordKind
from libs.common.contracts.streams import Stream
from libs.common.errors import Malformed
from libs.common.log.epochs import told_epoch
from libs.common.log.position import Position

R = TypeVar("R", bound=LogRecord)
R_in = TypeVar("R_in", bound=LogRecord, contravariant=True)

_log = structlog.get_logger()


class Rebuild(Protocol[R_in]):
    """What a replay fills."""

    def begin_epoch(self, epoch: LogEpoch) -> None: ...
    def apply(self, record: R_in, sequence: int) -> None:
        """`sequence` is the record's place in the stream."""
        ...

    def begin_checkpoint(self) -> None:
        """Forget everything: the pieces that follow hold the whole state."""
        ...

    def restore(self, piece: R_in) -> None: ...


class LogReader(Generic[R]):
    """Reads the log from its start on. `position` is how far.

    Whoever has read everything before a checkpoint learns nothing from it and passes it over. Where the log begins with
    one, or was purged past the place where we read, it replaces everything.

    A writer's record is known by its message id, so that one of ours that cannot be read is never taken for a
    stranger's; what others than a writer put there is passed over.
    """

    def __init__(
        self, bus: Bus, stream: Stream, *, epochs: Topic[LogEpoch], records: Topic[R], rebuild: Rebuild[R]
    ) -> None:
        self.position = Position()
        self.records = 0
        self.since_checkpoint = 0
        self._bus = bus
        self._stream = stream
        self._epochs = epochs
        self._topic = records
        self._rebuild = rebuild
        self._epoch = 0
        self._last: int | None = None
        self._restoring = False
        self._held: list[tuple[R, int]] = []
        self._take: Callable[[Stored], None] = self._decided

    async def run(self) -> None:
        """Runs until cancelled, or until it is `up_to`. Raises `Malformed` when a writer's record cannot be read."""
        messages = self._bus.read(self._stream, after=0)
        async with aclosing(messages):  # type: ignore[type-var]  # an async generator on every transport
            async for batch in messages:
                for stored in batch:
                    self._read(stored)
                    self.position.advance(stored.sequence)
                    if self._last is not None and stored.sequence >= self._last:
                        return
                    await asyncio.sleep(0)

    async def read_to(self, sequence: int) -> None:
        """As `run`, as far as this."""
        self._last = sequence
        await self.run()

    async def up_to(self, sequence: int) -> None:
        """Let the one that runs go no further than this, and wait until it is reached."""
        self._last = sequence
        await self.position.reached(sequence)

    def _read(self, stored: Stored) -> None:
        if stored.subject == self._epochs.subject:
            epoch = told_epoch(self._bus, self._epochs, stored)
            if epoch is not None:
                self._begin(epoch, stored.sequence)
                return
        elif stored.headers.get(MESSAGE_ID_HEADER, "").startswith(f"{self._epoch}."):
            self.records += 1
            self._take(stored)
            return
        _log.warning("stranger_in_the_log", stream=stored.stream, sequence=stored.sequence, subject=stored.subject)

    def _begin(self, epoch: LogEpoch, sequence: int) -> None:
        if self._restoring:
            raise Malformed(f"{self._stream.name} begins with a checkpoint that is not whole", epoch=self._epoch)
        self._epoch = epoch.epoch
        self._take = self._decided
        if epoch.checkpoint:
            self._take = self._known_already
            if sequence != self.position.value + 1:
                self._take = self._restored
                self._restoring = True
                self._rebuild.begin_checkpoint()
        self._rebuild.begin_epoch(epoch)

    def _decided(self, stored: Stored) -> None:
        self.since_checkpoint += 1
        self._rebuild.apply(self._bus.decode(self._topic, stored), stored.sequence)

    def _known_already(self, stored: Stored) -> None:
        """Facts that were decided while the checkpoint was written lie among its pieces."""
        kind = decode(LogRecord, stored.payload).kind
        if kind is RecordKind.FACTS:
            self._decided(stored)
        elif kind is RecordKind.DONE:
            self.since_checkpoint = 0
            self._take = self._decided

    def _restored(self, stored: Stored) -> None:
        """The same, but they are about what the checkpoint has yet to tell."""
        piece = self._bus.decode(self._topic, stored)
        if piece.kind is RecordKind.FACTS:
            self._held.append((piece, stored.sequence))
            return
        self._rebuild.restore(piece)
        if piece.kind is RecordKind.DONE:
            self._take = self._decided
            self._restoring = False
            self.since_checkpoint = len(self._held)
            for record, sequence in self._held:
                self._rebuild.apply(record, sequence)
            self._held.clear()
