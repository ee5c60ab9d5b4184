"""The leader's way into the log: group commit, and checkpoints when the log has grown enough."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from libs.common.bus.codec import encode, encode_list, encode_with
from libs.common.clock import Clock
from libs.common.contracts.base import Written
from libs.common.contracts.log import RecordKind
from libs.common.contracts.work_log import Fact, WorkRecord
from libs.common.errors import StreamFull, Unavailable
from libs.common.log.fenced_log import FencedLog, Stamp
from libs.common.log.group_commit import GroupCommit
from services.work_marshaling.checkpoint import chunks
from services.work_marshaling.facts import weight
from services.work_marshaling.meter import Meter
from services.work_marshaling.model import Effect, Rules
from services.work_marshaling.store import Memory, Snapshot

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """What was decided at once: the facts in JSON, how far the inputs had been read by then, what is to follow."""

    facts: tuple[bytes, ...]
    work_ids: tuple[str, ...]
    in_seq: int
    out_seq: int
    effects: tuple[Effect, ...]
    weight: int


class Journal:
    """`durable_in` and `durable_out` are how far the inputs were read according to the log.

    `follow` is called for every effect once its step is on disk.
    """

    def __init__(
        self,
        *,
        log: FencedLog[WorkRecord],
        memory: Memory,
        clock: Clock,
        rules: Rules,
        meter: Meter,
        origins: Mapping[str, datetime],
        follow: Callable[[Effect], None],
    ) -> None:
        self.durable_in = memory.in_seq
        self.durable_out = memory.out_seq
        self.problem: str | None = None
        self.checkpoint_wanted = False
        self._log = log
        self._memory = memory
        self._clock = clock
        self._rules = rules
        self._meter = meter
        self._origins = origins
        self._follow = follow
        self._commit: GroupCommit[Step] = GroupCommit()
        self._unconfirmed: dict[str, int] = {}
        self._records = 0
        self._bytes = 0
        self._snapshot: Snapshot | None = None
        self._pieces: Iterator[Callable[[Stamp], WorkRecord]] | None = None
        self._snapshot_bytes = 0

    @property
    def epoch(self) -> int:
        return self._log.epoch

    @property
    def unwritten(self) -> int:
        """How many decisions are not yet on disk."""
        return self._commit.added - self._commit.written

    @property
    def decisions(self) -> int:
        """How many there were since this leadership began."""
        return self._commit.added

    def add(self, facts: tuple[Fact, ...], work_ids: tuple[str, ...], follow: tuple[Effect, ...]) -> None:
        written = tuple(map(encode, facts))
        heavy = sum(map(len, written)) + len(written)
        step = Step(written, work_ids, self._memory.in_seq, self._memory.out_seq, follow, heavy)
        position = self._commit.add(step, heavy)
        for work_id in work_ids:
            self._unconfirmed[work_id] = position

    def unconfirmed(self, work_id: str) -> bool:
        """Whether what is known of the item is ahead of the disk."""
        return work_id in self._unconfirmed

    async def confirmed(self, work_id: str) -> None:
        """Wait until what is known of the item is on disk. Raises `Unavailable` when this leadership ended."""
        position = self._unconfirmed.get(work_id)
        if position is not None:
            await self._commit.reached(position)

    async def flushed(self, but: int = 0) -> None:
        """Wait until all but the newest so many decisions are on disk."""
        await self._commit.reached(self._commit.added - but)

    async def lead(self) -> None:
        """Raises `SteppedDown` when another leads by now."""
        await self._log.confirm()

    async def run(self) -> None:
        """Write until the leadership ends: raises `SteppedDown`."""
        await self._commit.run(self._write, self._checkpoint)

    async def _write(self, steps: Sequence[Step]) -> None:
        if self._pieces is None and self._checkpoint_due() and not self._commit.waiting:
            self._snapshot = self._memory.snapshot()
        facts = [fact for step in steps for fact in step.facts]
        last = steps[-1]
        started = self._clock.monotonic()
        await self._append(facts, last.in_seq, last.out_seq)
        seconds = self._clock.monotonic() - started
        self.durable_in, self.durable_out = last.in_seq, last.out_seq
        self._confirm(steps)
        self._meter.appended(seconds, len(facts))
        self._records += 1
        self._bytes += sum([step.weight for step in steps])

    def _confirm(self, steps: Sequence[Step]) -> None:
        written = self._commit.written + len(steps)
        for step in steps:
            for work_id in step.work_ids:
                if self._unconfirmed.get(work_id, written + 1) <= written:
                    del self._unconfirmed[work_id]
            for effect in step.effects:
                self._follow(effect)

    async def _append(self, facts: Sequence[bytes], in_seq: int, out_seq: int) -> None:
        """A full log is a problem that is shown and waited out: nothing that was read is lost meanwhile."""

        def record(stamp: Stamp) -> Written[WorkRecord]:
            rest = WorkRecord(epoch=stamp.epoch, n=stamp.n, at=stamp.at, in_seq=in_seq, out_seq=out_seq)
            return encode_with(rest, facts=encode_list(facts))

        while True:
            try:
                self._memory.log_seq = (await self._log.append(record)).sequence
            except StreamFull as error:
                if self.problem is None:
                    _log.error("log_full", reason=error.message)
                self.problem = "the stream WORK_LOG is full: raise its size limit"
                await self._clock.sleep(1.0)
            else:
                self.problem = None
                return

    def _checkpoint_due(self) -> bool:
        """Often enough that a restart is quick and the log stays small, rarely enough that it costs little."""
        if self.checkpoint_wanted:
            return True
        enough = max(self._rules.checkpoint_bytes, 4 * self._snapshot_bytes)
        return self._records >= self._rules.checkpoint_records or self._bytes >= enough

    async def _checkpoint(self) -> None:
        """Piece by piece, so that decisions never wait for more than one of them."""
        try:
            if self._snapshot is not None and self._pieces is None:
                self._pieces = await self._begin_checkpoint(self._snapshot)
                self._snapshot = None
            while self._pieces is not None:
                await self._write_piece(self._pieces)
                if self._commit.waiting:
                    return
        except Unavailable as error:
            _log.error("checkpoint_unfinished", reason=error.message)
            self._snapshot = self._pieces = None

    async def _begin_checkpoint(self, snapshot: Snapshot) -> Iterator[Callable[[Stamp], WorkRecord]]:
        self.checkpoint_wanted = False
        self._records = self._bytes = 0
        await self._log.begin_checkpoint(self._origins)
        return self._parts(snapshot)

    def _parts(self, snapshot: Snapshot) -> Iterator[Callable[[Stamp], WorkRecord]]:
        self._snapshot_bytes = 0
        for piece in chunks(snapshot):
            self._snapshot_bytes += sum(map(weight, piece))
            yield _part(snapshot, RecordKind.CHECKPOINT, piece)
        yield _part(snapshot, RecordKind.DONE, ())
        _log.info("checkpoint_written", epoch=self.epoch, items=len(snapshot.items), bytes=self._snapshot_bytes)

    async def _write_piece(self, pieces: Iterator[Callable[[Stamp], WorkRecord]]) -> None:
        piece = next(pieces, None)
        if piece is not None:
            await self._log.append(piece)
        else:
            self._pieces = None
            await self._log.purge()


def _part(snapshot: Snapshot, kind: RecordKind, facts: tuple[Fact, ...]) -> Callable[[Stamp], WorkRecord]:
    totals = dict(snapshot.totals) if kind is RecordKind.DONE else {}
    return lambda stamp: WorkRecord(
        epoch=stamp.epoch,
        n=stamp.n,
        at=stamp.at,
        kind=kind,
        in_seq=snapshot.in_seq,
        out_seq=snapshot.out_seq,
        facts=facts,
        totals=totals,
    )
