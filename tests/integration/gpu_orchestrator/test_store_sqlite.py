"""The journal of reservations on a real file."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.common.contracts.gpu_orchestrator import ReservationState
from libs.common.errors import Unavailable, WrongSetting
from services.gpu_orchestrator import store_sqlite
from services.gpu_orchestrator.store_sqlite import SqliteJournal
from tests.unit.gpu_orchestrator.test_machine import COMMITTED, HELD


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path / "ledger.db")
    await made.open()
    yield made
    await made.close()


async def test_what_was_written_is_read_as_it_was(journal: SqliteJournal):
    ended = replace(HELD, reservation_id="r2", token=8, state=ReservationState.ENDED, ended_at=HELD.reserved_at)
    await journal.write([COMMITTED, ended])

    assert await journal.read() == ([COMMITTED, ended], 8)


async def test_a_change_takes_the_place_of_what_was(journal: SqliteJournal):
    await asyncio.gather(journal.write([HELD]), journal.write([COMMITTED]))

    assert await journal.read() == ([COMMITTED], 7)


async def test_the_highest_token_is_known_when_its_reservation_is_forgotten(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_sqlite, "KEPT_ENDED", 0)
    await journal.write([replace(HELD, token=99, state=ReservationState.RELEASED)])

    assert await journal.read() == ([], 99)


async def test_what_ended_long_ago_is_forgotten_now_and_then(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_sqlite, "KEPT_ENDED", 1)
    monkeypatch.setattr(store_sqlite, "FORGOTTEN_AT_ONCE", 3)
    ended = [replace(HELD, token=token, state=ReservationState.RELEASED) for token in range(1, 5)]

    left = []
    for each in ended:
        await journal.write([each])
        left.append(len((await journal.read())[0]))

    assert left == [1, 2, 3, 1]


async def test_a_second_writer_is_refused(journal: SqliteJournal, tmp_path: Path):
    with pytest.raises(WrongSetting, match="another GPU orchestrator"):
        await SqliteJournal(tmp_path / "ledger.db", lock_seconds=0.05).open()


async def test_a_journal_that_cannot_be_read_is_kept_and_stops_the_service(tmp_path: Path):
    (tmp_path / "ledger.db").write_text("no database " * 100)

    with pytest.raises(WrongSetting, match="cannot be read"):
        await SqliteJournal(tmp_path / "ledger.db").open()

    assert "no database" in (tmp_path / "ledger.db").read_text()


async def test_a_closed_journal_takes_nothing(journal: SqliteJournal):
    await journal.close()

    with pytest.raises(Unavailable):
        await journal.write([HELD])
