"""One change of a reservation after another, and none of it told too early."""

import asyncio
from dataclasses import replace
from pathlib import Path

from libs.common.clock import ManualClock
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.bookkeeping import Bookkeeping
from services.gpu_orchestrator.machine import Held
from services.gpu_orchestrator.model import Rules
from services.gpu_orchestrator.store_sqlite import SqliteJournal
from tests.unit.gpu_orchestrator.test_machine import HELD


async def test_nobody_is_told_of_a_claim_that_is_written_and_not_proved_yet(tmp_path: Path):
    journal, proving = SqliteJournal(tmp_path / "ledger.db"), asyncio.Event()
    bookkeeping = Bookkeeping(book=Book(Rules()), journal=journal, clock=ManualClock(), machine_boot="b")
    await bookkeeping.open()
    later = replace(HELD, token=HELD.token + 1)

    async def prove(held: Held) -> bool:
        await proving.wait()
        return False

    first = asyncio.create_task(bookkeeping.attempt(HELD.reservation_id, lambda before: HELD, prove))
    await asyncio.sleep(0)
    written, _ = await journal.read()
    second = asyncio.create_task(bookkeeping.add(HELD.reservation_id, lambda before: before or later))
    await asyncio.sleep(0)
    proving.set()

    assert (written, await first, await second) == ([HELD], None, later)
    assert (await journal.read())[0] == [later]
    await bookkeeping.close()
