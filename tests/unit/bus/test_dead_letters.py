"""A letter always fits, and is never lost in silence."""

import asyncio
import base64
from datetime import UTC, datetime

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode
from libs.common.bus.dead_letters import KEPT_BYTES, letter_about, letter_id
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.transport import Stored
from libs.common.clock import ManualClock
from libs.common.contracts.base import DEAD_LETTER
from libs.common.contracts.streams import DEAD_LETTERS, WORK_IN
from libs.common.contracts.work_marshaling import SUBMIT, WorkItem
from libs.common.errors import Malformed
from tests.recording import RecordingObserver

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _stored(payload: bytes, **headers: str) -> Stored:
    return Stored(stream="WORK_IN", subject=SUBMIT.subject, sequence=7, payload=payload, headers=headers, at=NOW)


@pytest.mark.parametrize("max_payload", [64 * 1024, 1024 * 1024, 8 * 1024 * 1024])
def test_a_letter_is_never_larger_than_the_server_takes(max_payload: int) -> None:
    stored = _stored(b"\xff" * max_payload, **{f"X-{number}": "\x01é" * 500 for number in range(200)})
    letter = letter_about(stored, Malformed("\x01" * 5000), found_by="x" * 100, at=NOW, max_payload=max_payload)

    assert len(encode(letter)) + 1024 < max_payload
    kept = base64.b64decode(letter.payload)
    assert stored.payload.startswith(kept)
    assert 0 < len(kept) <= KEPT_BYTES
    assert letter.payload_bytes == max_payload


def test_a_short_payload_is_kept_whole() -> None:
    letter = letter_about(_stored(b"not JSON"), Malformed("why"), found_by="x", at=NOW, max_payload=1024 * 1024)

    assert (base64.b64decode(letter.payload), letter.payload_bytes) == (b"not JSON", 8)


def test_a_letter_is_known_by_what_it_is_about() -> None:
    assert letter_id(_stored(b"a")) == letter_id(_stored(b"b")) == "dead-WORK_IN-7"


async def test_a_message_about_which_no_letter_can_be_kept_comes_again() -> None:
    clock, observer = ManualClock(), RecordingObserver()
    async with MemoryServer(clock=clock).connect("test") as transport:
        await transport.ensure_stream(WORK_IN)
        bus = Bus(transport, name="test", observer=observer, clock=clock)
        await bus.append(SUBMIT, WorkItem(work_type="chat"), message_id=None)
        delivered: asyncio.Queue[int] = asyncio.Queue()

        async def refuse(stored: Stored) -> None:
            delivered.put_nowait(stored.sequence)
            raise Malformed("not for us")

        consuming = asyncio.create_task(bus.consume(WORK_IN, durable="worker", handler=refuse))
        assert await asyncio.wait_for(delivered.get(), 5) == 1
        await transport.ensure_stream(DEAD_LETTERS)
        while observer.dead == []:
            clock.advance(1)
            await asyncio.sleep(0)
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)

        assert delivered.qsize() == 1
        stored = await bus.last(DEAD_LETTERS, DEAD_LETTER)
        assert stored is not None
        assert bus.decode(DEAD_LETTER, stored).reason == "not for us"
