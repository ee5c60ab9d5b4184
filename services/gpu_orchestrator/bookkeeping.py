"""Every change of a reservation: decided, on disk, and only then in the book."""

import asyncio
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from libs.common.clock import Clock
from libs.common.errors import MeshError, NotFound
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.machine import Held, after_boot
from services.gpu_orchestrator.store import Journal


class Bookkeeping:
    """The one writer of this machine's journal. `machine_boot` names the time since the machine was started."""

    def __init__(self, *, book: Book, journal: Journal, clock: Clock, machine_boot: str) -> None:
        self.book = book
        self.machine_boot = machine_boot
        self._journal = journal
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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
        """`make` is given what has this name already. Raises what it raises, and `Unavailable`."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            before = self.book.find(name)
            held = make(before)
            if held is before:
                return held
            self.book.put([held])
            try:
                await self._journal.write([held])
            except MeshError:
                self.book.remove(held)
                raise
            return held

    async def change(self, reservation_id: str, decide: Callable[[Held], Held]) -> Held:
        """One change of a reservation after another. Raises `NotFound`, `Unavailable`, and what `decide` raises."""
        return await asyncio.shield(self._changed(reservation_id, decide))

    async def _changed(self, reservation_id: str, decide: Callable[[Held], Held]) -> Held:
        async with self._turns.setdefault(reservation_id, asyncio.Lock()):
            before = self.known(reservation_id)
            after = decide(before)
            if after is not before:
                await self._keep([after])
            return after

    async def _keep(self, changed: Sequence[Held]) -> None:
        await self._journal.write(changed)
        self.book.put(changed)

    def known(self, reservation_id: str) -> Held:
        """Raises `NotFound`."""
        held = self.book.find(reservation_id)
        if held is None:
            raise NotFound(f"There is no reservation {reservation_id!r} here.", reservation_id=reservation_id)
        return held
