"""Every change of a reservation: decided, on disk, and only then in the book."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from libs.common.clock import Clock
from libs.common.errors import NotFound, Unavailable
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.machine import Held, after_boot
from services.gpu_orchestrator.store import Journal


class Bookkeeping:
    """The one writer of this machine's journal. `machine_boot` names the time since the machine was started.

    A new reservation is told when it is synced, so that its token is never used again. Any other change is told when it
    is written: it outlives this process, and with a power failure every reservation ends.
    """

    def __init__(self, *, book: Book, journal: Journal, clock: Clock, machine_boot: str) -> None:
        self.book = book
        self.machine_boot = machine_boot
        self._journal = journal
        self._clock = clock
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._proving: dict[str, asyncio.Future[None]] = {}

    async def open(self) -> None:
        """With what the journal kept. Raises `WrongSetting`, `Unavailable`."""
        await self._journal.open()
        kept, self.book.last_token = await self._journal.read()
        now = [after_boot(held, self.machine_boot, self._clock.now()) for held in kept]
        changed = [new for old, new in zip(kept, now, strict=True) if new is not old]
        if changed:
            await self._journal.write(changed)
        self.book.put(now)

    async def close(self) -> None:
        await self._journal.close()

    async def add(self, name: str, make: Callable[[Held | None], Held]) -> Held:
        """`make` is given what has this name already. Raises what it raises, and `Unavailable`.

        What is given counts before it is on disk: nobody else is given the same.
        """
        await self._turn(name)
        before = self.book.find(name)
        held = make(before)
        if held is not before:
            await self._begin(held)
        return held

    async def attempt(
        self, name: str, make: Callable[[Held | None], Held | None], prove: Callable[[Held], Awaitable[bool]]
    ) -> Held | None:
        """As `add`, and while it is written `prove` finds out whether it may be given. If not it is as if it had never
        been, and the answer is None, as when `make` makes none.
        """
        await self._turn(name)
        before = self.book.find(name)
        held = make(before)
        if held is None or held is before:
            return held
        writing = self._begin(held)
        proved = self._proving[name] = asyncio.get_running_loop().create_future()
        given = False
        try:
            given = await prove(held)
        finally:
            if not given:
                writing.add_done_callback(_heard)
                self._withdraw(held)
            del self._proving[name]
            proved.set_result(None)
        if not given:
            return None
        await writing
        return held

    async def change(self, reservation_id: str, decide: Callable[[Held], Held]) -> Held:
        """One change of a reservation after another. Raises `NotFound`, `Unavailable`, and what `decide` raises."""
        await self._turn(reservation_id)
        before = self.known(reservation_id)
        after = decide(before)
        if after is not before:
            await self._write(after, lambda written: self.book.put([after]) if written else None, synced=False)
        return after

    async def _turn(self, reservation_id: str) -> None:
        """Until nothing of it is on its way to the disk, and all that is there may be given."""
        while busy := self._writing.get(reservation_id) or self._proving.get(reservation_id):
            await asyncio.wait({busy})

    def _begin(self, held: Held) -> asyncio.Future[None]:
        """Raises `Unavailable`, now or then."""
        self.book.put([held])
        try:
            return self._write(held, lambda written: None if written else self.book.remove(held), synced=True)
        except Unavailable:
            self.book.remove(held)
            raise

    def _withdraw(self, held: Held) -> None:
        """What cannot be taken out of the journal is held after a restart until it expires."""
        self.book.remove(held)
        with suppress(Unavailable):
            self._journal.forget(held).add_done_callback(_heard)

    def _write(self, held: Held, then: Callable[[bool], None], *, synced: bool) -> asyncio.Future[None]:
        """`then` is told whether it is there, even if who asked for it is gone: book and journal never part."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(error: BaseException | None) -> None:
            then(error is None)
            self._writing.pop(held.reservation_id, None)
            over.set_result(None)

        writing = self._journal.write([held], ended, synced=synced)
        if not over.done():
            self._writing[held.reservation_id] = over
        return writing

    def known(self, reservation_id: str) -> Held:
        """Raises `NotFound`."""
        held = self.book.find(reservation_id)
        if held is None:
            raise NotFound(f"There is no reservation {reservation_id!r} here.", reservation_id=reservation_id)
        return held


def _heard(forgotten: "asyncio.Future[None]") -> None:
    """Nobody waits for it; whether the journal can be written is told by its check."""
    if not forgotten.cancelled():
        forgotten.exception()
