"""The log has one writer at a time, and a new one finds everything that was acknowledged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest

from libs.common.bus.bus import Bus, Stored
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.bus.transport import StreamMadeAnew
from libs.common.clock import ManualClock
from libs.common.contracts.base import Topic
from libs.common.contracts.log import LogEpoch, LogRecord, RecordKind
from libs.common.contracts.streams import Stream
from libs.common.errors import Malformed, StreamFull
from libs.common.log.fenced_log import FencedLog, Stamp, SteppedDown
from libs.common.log.reading import LogReader

STREAM = Stream(name="TEST_LOG", subjects=("test.epoch", "test.log"), max_bytes=100_000, summary="")


class Note(LogRecord):
    text: str


EPOCHS = Topic(subject="test.epoch", message=LogEpoch, owner="test", summary="", stream="TEST_LOG")
NOTES = Topic(subject="test.log", message=Note, owner="test", summary="", stream="TEST_LOG")


class Told:
    """What a replay told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sequences: list[int] = []
        self.epochs: list[int] = []

    def begin_epoch(self, epoch: LogEpoch) -> None:
        self.epochs.append(epoch.epoch)

    def apply(self, record: Note, sequence: int) -> None:
        self.texts.append(record.text)
        self.sequences.append(sequence)

    def begin_checkpoint(self) -> None:
        self.texts = []

    def restore(self, piece: Note) -> None:
        if piece.kind is RecordKind.CHECKPOINT:
            self.texts.append(piece.text)


class House:
    def __init__(self, server: MemoryServer, clock: ManualClock, stack: AsyncExitStack) -> None:
        self.server = server
        self.clock = clock
        self._stack = stack

    async def writer(self, name: str, patience_seconds: float = 60.0) -> FencedLog[Note]:
        transport = await self._stack.enter_async_context(self.server.connect(name))
        await transport.ensure_stream(STREAM)
        self.bus = Bus(transport, name=name, observer=SilentObserver(), clock=self.clock)
        return FencedLog(
            self.bus,
            STREAM,
            epochs=EPOCHS,
            records=NOTES,
            holder=name,
            clock=self.clock,
            patience_seconds=patience_seconds,
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        yield House(MemoryServer(clock=clock), clock, stack)


def note(text: str, kind: RecordKind = RecordKind.FACTS):
    def make(stamp: Stamp) -> Note:
        return Note(epoch=stamp.epoch, n=stamp.n, at=datetime(2030, 1, 1, tzinfo=UTC), kind=kind, text=text)

    return make


async def replayed(log: FencedLog[Note], house: House) -> Told:
    """What a reader knows once it has read up to the writer's epoch record."""
    told = Told()
    following = LogReader(house.bus, STREAM, epochs=EPOCHS, records=NOTES, rebuild=told)
    await following.read_to(log.fence)
    return told


async def test_the_first_writer_begins_with_epoch_one(house: House):
    assert await (await house.writer("a")).take_over({}) == 1


async def test_a_new_writer_finds_everything_in_order(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    for text in ("one", "two", "three"):
        await first.append(note(text))

    await second.take_over({})

    assert (await replayed(second, house)).texts == ["one", "two", "three"]


async def test_a_reader_says_itself_that_the_log_was_lost_before_its_end(house: House):
    await (await house.writer("a")).take_over({})
    following = LogReader(house.bus, STREAM, epochs=EPOCHS, records=NOTES, rebuild=Told())
    reading = asyncio.create_task(following.read_to(100))
    await asyncio.sleep(0.01)
    house.server.stop()
    house.server.start(emptied=True)

    with pytest.raises(StreamMadeAnew):
        await asyncio.wait_for(reading, 5)


async def test_a_writer_that_was_replaced_cannot_write(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await second.take_over({})

    with pytest.raises(SteppedDown) as stepped_down:
        await first.append(note("late"))

    assert stepped_down.value.fenced
    await second.append(note("mine"))
    third = await house.writer("c")
    await third.take_over({})
    assert (await replayed(third, house)).texts == ["mine"]


async def test_a_writer_that_was_replaced_stays_replaced(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await second.take_over({})
    for _ in range(2):
        with pytest.raises(SteppedDown):
            await first.append(note("late"))

    with pytest.raises(SteppedDown):
        await first.begin_checkpoint({})


async def test_a_replay_stops_at_the_own_epoch(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await second.take_over({})
    await second.append(note("after"))

    assert (await replayed(first, house)).texts == []


async def test_the_log_of_an_empty_stream_is_empty(house: House):
    log = await house.writer("a")
    await log.take_over({})

    assert (await replayed(log, house)).texts == []


async def test_who_has_read_everything_passes_over_a_checkpoint(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.append(note("old"))
    await first.begin_checkpoint({})
    await first.append(note("all", RecordKind.CHECKPOINT))
    await first.append(note("", RecordKind.DONE))
    await first.append(note("new"))

    await second.take_over({})

    assert (await replayed(second, house)).texts == ["old", "new"]


async def test_a_reader_past_whom_the_log_was_purged_begins_anew_with_the_checkpoint(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    for text in ("old", "missed"):
        await first.append(note(text))
    await first.begin_checkpoint({})
    await first.append(note("all", RecordKind.CHECKPOINT))
    await first.append(note("", RecordKind.DONE))
    await first.append(note("new"))
    await second.take_over({})
    read = house.bus.read

    async def read_late(stream: Stream, *, after: int) -> AsyncIterator[list[Stored]]:
        async for batch in read(stream, after=after):
            yield [stored for stored in batch if stored.sequence != 3]

    house.bus.read = read_late  # type: ignore[method-assign]

    assert (await replayed(second, house)).texts == ["all", "new"]


@pytest.mark.parametrize("purged", [True, False])
async def test_what_is_decided_while_a_checkpoint_is_written_comes_after_it(house: House, purged: bool):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.append(note("one"))
    await first.begin_checkpoint({})
    await first.append(note("one", RecordKind.CHECKPOINT))
    await first.append(note("two"))
    await first.append(note("and", RecordKind.CHECKPOINT))
    await first.append(note("", RecordKind.DONE))
    await first.append(note("three"))
    if purged:
        await first.purge()
    await second.take_over({})

    told = (await replayed(second, house)).texts
    assert told == (["one", "and", "two", "three"] if purged else ["one", "two", "three"])


async def test_a_log_that_begins_with_a_checkpoint_that_is_not_whole_is_an_error(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.begin_checkpoint({})
    await first.purge()
    await first.append(note("half", RecordKind.CHECKPOINT))
    await first.append(note("more"))
    await second.take_over({})
    await (await house.writer("c")).take_over({})

    with pytest.raises(Malformed, match="not whole"):
        await replayed(second, house)


async def test_after_a_checkpoint_older_records_can_go(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.append(note("old"))
    await first.begin_checkpoint({})
    await first.append(note("all", RecordKind.CHECKPOINT))
    await first.append(note("", RecordKind.DONE))
    await first.purge()
    await first.append(note("new"))

    await second.take_over({})
    told = await replayed(second, house)

    assert told.texts == ["all", "new"]
    assert (await house.bus.stream_state(STREAM)).first_sequence == 3


async def test_a_replay_tells_where_in_the_stream_each_record_is(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    receipts = [await first.append(note(text)) for text in ("one", "two")]
    await second.take_over({})

    assert (await replayed(second, house)).sequences == [receipt.sequence for receipt in receipts]


async def test_an_unfinished_checkpoint_changes_nothing(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.append(note("old"))
    await first.begin_checkpoint({})
    await first.append(note("half", RecordKind.CHECKPOINT))

    await second.take_over({})
    await second.append(note("new"))
    third = await house.writer("c")
    await third.take_over({})

    assert (await replayed(third, house)).texts == ["old", "new"]


async def test_a_writer_without_receipts_steps_down(house: House):
    log = await house.writer("a", patience_seconds=60)
    await log.take_over({})
    house.server.stop()
    writing = asyncio.create_task(log.append(note("lost")))
    while not writing.done():
        house.clock.advance(5)
        for _ in range(20):
            await asyncio.sleep(0)

    with pytest.raises(SteppedDown) as stepped_down:
        writing.result()
    assert not stepped_down.value.fenced


async def test_an_outage_shorter_than_its_patience_costs_nothing(house: House):
    log = await house.writer("a", patience_seconds=60)
    await log.take_over({})
    house.server.stop()
    writing = asyncio.create_task(log.append(note("kept")))
    for _ in range(5):
        house.clock.advance(1)
        for _ in range(20):
            await asyncio.sleep(0)
    house.server.start()
    while not writing.done():
        house.clock.advance(1)
        for _ in range(20):
            await asyncio.sleep(0)
    writing.result()

    second = await house.writer("b")
    await second.take_over({})
    assert (await replayed(second, house)).texts == ["kept"]


async def test_the_same_record_sent_twice_is_kept_once(house: House):
    log = await house.writer("a")
    await log.take_over({})
    receipt = await log.append(note("once"))
    again = await house.bus.append(NOTES, note("once")(Stamp(1, 1, house.clock.now())), message_id="1.1")

    assert again.duplicate
    assert again.sequence == receipt.sequence


async def test_a_full_log_is_told_and_ends_no_term(house: House):
    log = await house.writer("a")
    await log.take_over({})
    with pytest.raises(StreamFull):
        await log.append(note("x" * 200_000))

    await log.append(note("small"))


async def test_two_that_take_over_at_once_are_not_both_the_writer(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    outcomes = await asyncio.gather(first.take_over({}), second.take_over({}), return_exceptions=True)
    written = await asyncio.gather(
        *(log.append(note(name)) for log, name in ((first, "a"), (second, "b"))), return_exceptions=True
    )

    assert sum(not isinstance(outcome, Exception) for outcome in written) == 1, (outcomes, written)


async def test_a_stranger_where_epochs_belong_is_no_new_writer(house: House):
    log = await house.writer("a")
    await log.take_over({})
    await log.append(note("kept"))
    async with house.server.connect("stranger") as stranger:
        await stranger.publish("test.epoch", b"garbage", {})
        await stranger.publish("test.epoch", b'{"epoch": 7, "holder": "x", "at": "2030-01-01T00:00:00Z"}', {})
    with pytest.raises(SteppedDown) as stepped_down:
        await log.append(note("refused"))
    assert not stepped_down.value.fenced

    again = await house.writer("b")
    assert await again.take_over({}) > 1
    told = await replayed(again, house)
    await again.append(note("more"))
    assert told.texts == ["kept"]


async def test_what_a_stranger_writes_into_the_log_is_passed_over(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    await first.append(note("one"))
    async with house.server.connect("stranger") as stranger:
        for payload in (b"garbage", b"{}", note("forged")(Stamp(1, 9, house.clock.now())).model_dump_json().encode()):
            await stranger.publish("test.log", payload, {})
    await first.append(note("two"))
    await second.take_over({})

    assert (await replayed(second, house)).texts == ["one", "two"]


async def test_a_record_of_a_writer_that_cannot_be_read_is_an_error(house: House):
    first, second = await house.writer("a"), await house.writer("b")
    await first.take_over({})
    async with house.server.connect("newer") as newer:
        await newer.append("test.log", b'{"in": "words of the future"}', {}, message_id="1.1", timeout=1)
    await second.take_over({})

    with pytest.raises(Malformed):
        await replayed(second, house)
