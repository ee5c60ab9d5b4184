"""Measure, reckon, decide, keep, tell."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4
from weakref import WeakValueDictionary

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import (
    CAN_FIT,
    COMMIT,
    GPU_STATES,
    RELEASE,
    RENEW,
    RESERVE,
    Commit,
    FitAnswer,
    FitQuestion,
    GpuProcesses,
    GpuStates,
    MemoryState,
    Release,
    Renew,
    Reservation,
    Reservations,
    ReservationState,
    ReserveRequest,
)
from libs.common.contracts.node_registry import Problem
from libs.common.errors import Conflict, Malformed, MeshError, NotFound
from services.gpu_orchestrator.book import Book
from services.gpu_orchestrator.devices import devices_of, indices, named
from services.gpu_orchestrator.machine import Held, Holder, after_boot, committed, looked_at, released, renewed
from services.gpu_orchestrator.meters import Family, Meters, Processes, Root
from services.gpu_orchestrator.model import RAM
from services.gpu_orchestrator.observer import Observer
from services.gpu_orchestrator.store import Journal
from services.gpu_orchestrator.views import entry_view, fit_view, reservation_view, state_view

log = structlog.get_logger()


class GpuOrchestrator:
    """The one writer of this machine's ledger. `machine_boot` names the time since the machine was started;
    `measure_seconds`: how old a measurement may be on which something is granted.
    """

    def __init__(
        self,
        *,
        node_id: str,
        boot_id: str,
        machine_boot: str,
        meters: Meters,
        processes: Processes,
        journal: Journal,
        book: Book,
        bus: Bus,
        clock: Clock,
        observer: Observer,
        timeout_seconds: float,
        measure_seconds: float,
    ) -> None:
        self._node_id = node_id
        self._boot_id = boot_id
        self._machine_boot = machine_boot
        self._meters = meters
        self._processes = processes
        self._journal = journal
        self._book = book
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self._timeout_seconds = timeout_seconds
        self._measure_seconds = measure_seconds
        self._measuring = asyncio.Lock()
        self._measured_at = float("-inf")
        self._begun = self._measured = 0
        self._problems: tuple[Problem, ...] = ()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """With what the journal kept. Raises `WrongSetting`, `Unavailable`."""
        await self._journal.open()
        try:
            kept, self._book.last_token = await self._journal.read()
            now = [after_boot(held, self._machine_boot, self._clock.now()) for held in kept]
            changed = [new for old, new in zip(kept, now, strict=True) if new is not old]
            if changed:
                await self._journal.write(changed)
            self._book.put(now)
            yield
        finally:
            await self._journal.close()

    async def states(self) -> GpuStates:
        """Every GPU as it is now."""
        await self.refresh()
        gpus = tuple(state_view(state, self._book.ledger) for state in self._book.states)
        at = self._clock.now()
        return GpuStates(node_id=self._node_id, boot_id=self._boot_id, at=at, gpus=gpus, problems=self._problems)

    async def processes(self, uuid: str) -> GpuProcesses:
        """Who uses one GPU now. Raises `NotFound`."""
        states = await self.states()
        for state in states.gpus:
            if state.gpu.uuid == uuid:
                return GpuProcesses(uuid=uuid, at=states.at, processes=state.processes)
        raise NotFound(f"There is no GPU {uuid!r} on this machine.", uuid=uuid, gpus=[s.gpu.uuid for s in states.gpus])

    async def memory(self) -> MemoryState:
        """RAM and swap as they are now."""
        memory, problems = await self._meters.memory()
        entry = self._book.ledger.get(RAM)
        ledger = entry_view(entry) if entry else None
        at = self._clock.now()
        return MemoryState(node_id=self._node_id, at=at, memory=memory, problems=problems, ledger=ledger)

    async def tell(self) -> None:
        """Publish every GPU's state. Raises `Disconnected`."""
        states, memory = await self.states(), await self.memory()
        self._observer.measured(states.gpus, memory.memory)
        await self._bus.publish(GPU_STATES, states)

    async def can_fit(self, asked: FitQuestion) -> FitAnswer:
        """Whether it would fit now. Raises `Malformed` when a GPU is named that is not here."""
        if self._is_elsewhere(asked.node_id):
            return await self._bus.request(CAN_FIT, asked, node_id=asked.node_id)
        await self.refresh(within=self._measure_seconds)
        choice = self._book.choice(asked)
        return fit_view(choice, self._node_id, indices(self._book.states), self._clock.now())

    async def reserve(self, asked: ReserveRequest) -> Reservation:
        """All that is asked for. Raises `Conflict` with what is in the way, `Malformed`, `Unavailable`."""
        if self._is_elsewhere(asked.node_id):
            return await self._bus.request(RESERVE, asked, node_id=asked.node_id)
        name = asked.reservation_id or f"r-{uuid4().hex}"
        try:
            held = await asyncio.shield(self._reserve(name, asked))
        except Conflict:
            self._observer.asked("refused")
            raise
        except MeshError:
            self._observer.asked("failed")
            raise
        self._observer.asked("granted")
        return self._view(held)

    async def renew(self, asked: Renew, node_id: str | None = None) -> Reservation:
        """Raises `NotFound`, `Forbidden`, `Conflict`, `Unavailable`."""
        if self._is_elsewhere(node_id):
            return await self._bus.request(RENEW, asked, node_id=node_id)
        now = self._clock.monotonic()
        return await self._change(
            asked.reservation_id, lambda held: renewed(held, asked.token, asked.timeout_seconds, now)
        )

    async def commit(self, asked: Commit, node_id: str | None = None) -> Reservation:
        """Raises `NotFound`, `Forbidden`, `Conflict`, `Malformed` when there is no such process, `Unavailable`."""
        if self._is_elsewhere(node_id):
            return await self._bus.request(COMMIT, asked, node_id=node_id)
        holder = await self._holder(asked)
        now = self._clock.monotonic()
        return await self._change(asked.reservation_id, lambda held: committed(held, asked.token, holder, now))

    async def release(self, asked: Release, node_id: str | None = None) -> Reservation:
        """Again is as once. Raises `NotFound`, `Forbidden`, `Unavailable`."""
        if self._is_elsewhere(node_id):
            return await self._bus.request(RELEASE, asked, node_id=node_id)
        at = self._clock.now()
        return await self._change(asked.reservation_id, lambda held: released(held, asked.token, at))

    def reservation(self, reservation_id: str) -> Reservation:
        """Raises `NotFound`."""
        return self._view(self._known(reservation_id))

    def reservations(self, *, only_open: bool) -> Reservations:
        """The oldest first."""
        found = self._book.open_ones() if only_open else self._book.all()
        return Reservations(node_id=self._node_id, reservations=tuple(self._view(held) for held in found))

    def problem(self) -> str | None:
        """Why the ledger cannot be believed yet."""
        return None if self._measured else "the memory of this machine has not been measured yet"

    async def refresh(self, *, within: float = 0.0) -> None:
        """A measurement that began at most `within` seconds before now; those who wait share one."""
        begun = self._begun
        async with self._measuring:
            young = within > 0 and self._clock.monotonic() - self._measured_at <= within
            if self._measured <= begun and not young:
                self._begun += 1
                await self._measure()
                self._measured = self._begun

    async def watch(self) -> None:
        """Once in a while, whether or not anybody asks. Raises `Unavailable`."""
        await self.refresh()

    async def _measure(self) -> None:
        began = self._clock.monotonic()
        graphics, (memory, problems) = await asyncio.gather(self._meters.gpus(), self._meters.memory())
        family = await self._families({each.pid for state in graphics.states for each in state.processes or ()})
        await self._look(family)
        tokens = {held.reservation_id: held.token for held in self._book.open_ones()}
        ram = {tokens[name]: (name, mb) for name, mb in family.ram_mb.items() if name in tokens}
        devices = devices_of(graphics.states, memory, family.owners, family.commands, ram)
        now = self._clock.monotonic()
        events = self._book.measured(graphics.states, graphics.links, devices, now)
        self._problems, self._measured_at = (*graphics.problems, *problems), began
        for event in events:
            self._observer.happened(event.kind)
            log.warning(
                "ledger_event",
                kind=event.kind,
                device=event.device,
                reservation_id=event.reservation_id,
                pid=event.pid,
                reason=event.message,
            )
        states = Counter(str(held.state) for held in self._book.open_ones())
        self._observer.reckoned(self._book.ledger, states)

    async def _families(self, pids: set[int]) -> Family:
        roots = [
            Root(
                reservation_id=held.reservation_id,
                pid=held.pid,
                pid_start=held.pid_start,
                container_id=held.container_id,
            )
            for held in self._book.open_ones()
            if held.state == ReservationState.COMMITTED
        ]
        return await self._processes.families(roots, pids)

    async def _look(self, family: Family) -> None:
        """Expire and end what time and processes ended. A container that was never seen from here ends by release."""
        now, at = self._clock.monotonic(), self._clock.now()

        def alive(held: Held) -> bool | None:
            told = family.alive.get(held.reservation_id)
            return None if held.container_id and not held.container_seen and not told else told

        for held in self._book.open_ones():
            if looked_at(held, alive=alive(held), now=now, at=at) is not held:
                await self._change(held.reservation_id, lambda this: looked_at(this, alive=alive(this), now=now, at=at))

    async def _reserve(self, name: str, asked: ReserveRequest) -> Held:
        await self.refresh(within=self._measure_seconds)
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            before = self._book.find(name)
            if before is not None:
                return self._same(before, asked)
            held = self._granted(name, asked)
            self._book.put([held])
            try:
                await self._journal.write([held])
            except MeshError:
                self._book.remove(held)
                raise
            return held

    def _granted(self, name: str, asked: ReserveRequest) -> Held:
        choice = self._book.choice(asked)
        if not choice.fits:
            answer = fit_view(choice, self._node_id, indices(self._book.states), self._clock.now())
            raise Conflict(f"It does not fit: {choice.reason}.", **answer.model_dump(mode="json", exclude={"reason"}))
        seconds = asked.timeout_seconds if asked.timeout_seconds is not None else self._timeout_seconds
        return Held(
            reservation_id=name,
            token=self._book.next_token(),
            state=ReservationState.HELD,
            gpu_uuids=choice.uuids,
            required_mb=asked.required_mb,
            ram_mb=asked.ram_mb,
            owner=asked.owner,
            purpose=asked.purpose,
            timeout_seconds=seconds,
            deadline=self._clock.monotonic() + seconds,
            machine_boot=self._machine_boot,
            reserved_at=self._clock.now(),
        )

    def _same(self, before: Held, asked: ReserveRequest) -> Held:
        """A repeated request is answered with what it was given; the id of anything else is taken."""
        wanted = named(self._book.states, asked.gpu_indices, asked.gpu_uuids)
        same_gpus = len(before.gpu_uuids) == asked.count and (wanted is None or wanted == before.gpu_uuids)
        same = same_gpus and (before.required_mb, before.ram_mb) == (asked.required_mb, asked.ram_mb)
        if before.is_open and same:
            return before
        reason = "asks for something else" if before.is_open else f"is {before.state}"
        raise Conflict(f"reservation_id: {before.reservation_id} is taken: it {reason}.", field="reservation_id")

    async def _holder(self, asked: Commit) -> Holder:
        if asked.container_id is not None:
            seen = await self._processes.has_container(asked.container_id)
            return Holder(container_id=asked.container_id, container_seen=seen)
        start = await self._processes.start_of(asked.pid or 0)
        if start is None:
            raise Malformed(f"pid: there is no process {asked.pid} on this machine.", field="pid", pid=asked.pid)
        return Holder(pid=asked.pid, pid_start=start)

    async def _change(self, reservation_id: str, decide: Callable[[Held], Held]) -> Reservation:
        return self._view(await asyncio.shield(self._changed(reservation_id, decide)))

    async def _changed(self, reservation_id: str, decide: Callable[[Held], Held]) -> Held:
        """One change of a reservation after another; on disk before it counts."""
        turn = self._turns.setdefault(reservation_id, asyncio.Lock())
        async with turn:
            before = self._known(reservation_id)
            after = decide(before)
            if after is not before:
                await self._journal.write([after])
                self._book.put([after])
            return after

    def _known(self, reservation_id: str) -> Held:
        held = self._book.find(reservation_id)
        if held is None:
            raise NotFound(f"There is no reservation {reservation_id!r} here.", reservation_id=reservation_id)
        return held

    def _view(self, held: Held) -> Reservation:
        return reservation_view(held, self._node_id, indices(self._book.states), self._clock.monotonic())

    def _is_elsewhere(self, node_id: str | None) -> bool:
        return node_id is not None and node_id != self._node_id
