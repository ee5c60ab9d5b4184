"""Measure, reckon, decide, keep, tell."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import (
    CAN_FIT,
    COMMIT,
    RELEASE,
    RENEW,
    RESERVE,
    Commit,
    FitAnswer,
    FitQuestion,
    GpuHistory,
    GpuProcesses,
    GpuStates,
    MemoryHistory,
    MemoryState,
    Release,
    Renew,
    Reservation,
    Reservations,
    ReservationState,
    ReserveRequest,
)
from libs.common.errors import Conflict, Malformed, MeshError, NotFound
from services.gpu_orchestrator.bookkeeping import Bookkeeping
from services.gpu_orchestrator.choosing import Choice
from services.gpu_orchestrator.copying import read_copy
from services.gpu_orchestrator.devices import named
from services.gpu_orchestrator.machine import Held, Holder, committed, released, renewed
from services.gpu_orchestrator.measuring import Look, Measuring
from services.gpu_orchestrator.meters import Meters, Processes
from services.gpu_orchestrator.model import RAM
from services.gpu_orchestrator.observer import Observer
from services.gpu_orchestrator.views import entry_view, fit_view, reservation_view, state_view
from services.gpu_orchestrator.watching import Watching

log = structlog.get_logger()

MOST_OPEN = 4096
"""Reservations at once: each costs a little of every one that follows."""


class GpuOrchestrator:
    """Gives this machine's memory away, and tells what became of it."""

    def __init__(
        self,
        *,
        node_id: str,
        boot_id: str,
        meters: Meters,
        processes: Processes,
        bookkeeping: Bookkeeping,
        measuring: Measuring,
        watching: Watching,
        bus: Bus,
        clock: Clock,
        observer: Observer,
        timeout_seconds: float,
    ) -> None:
        self._node_id = node_id
        self._boot_id = boot_id
        self._meters = meters
        self._processes = processes
        self._bookkeeping = bookkeeping
        self._book = bookkeeping.book
        self._measuring = measuring
        self._watching = watching
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self._timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """With what the journal kept. Raises `WrongSetting`, `Unavailable`."""
        try:
            await self._bookkeeping.open()
            yield
        finally:
            await self._measuring.close()
            await self._bookkeeping.close()

    async def states(self) -> GpuStates:
        """Every GPU as it is now."""
        await self.refresh()
        return self.known_states()

    async def observed_states(self) -> GpuStates:
        """Every GPU as it is now; metrics tell the same."""
        states, (memory, _) = await self.states(), await self._meters.memory()
        self._observer.measured(states.gpus, memory)
        return states

    def known_states(self) -> GpuStates:
        """Every GPU as it was measured last, with the reservations of now."""
        ledger, trend = self._book.ledger, self._watching.trend
        gpus = tuple(state_view(state, ledger, trend(state.gpu.uuid)) for state in self._book.states)
        at, problems = self._clock.now(), self._measuring.problems
        return GpuStates(node_id=self._node_id, boot_id=self._boot_id, at=at, gpus=gpus, problems=problems)

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
        return MemoryState(
            node_id=self._node_id,
            at=self._clock.now(),
            memory=memory,
            problems=problems,
            ledger=entry_view(entry) if entry else None,
            trend=self._watching.trend(RAM),
            stalled_ratio=self._watching.stalled_ratio,
        )

    def memory_history(self, seconds: float) -> MemoryHistory:
        """RAM as it was."""
        history = self._watching.history(RAM, seconds)
        return MemoryHistory(node_id=self._node_id, at=self._clock.now(), memory=history)

    def gpu_history(self, seconds: float, uuid: str | None = None) -> GpuHistory:
        """VRAM as it was, of one GPU or part of one, or of all. Raises `NotFound`."""
        known = [device for device in self._book.ledger if device != RAM]
        if uuid is not None and uuid not in known:
            raise NotFound(f"There is no GPU {uuid!r} on this machine.", uuid=uuid, gpus=known)
        told = (self._watching.history(device, seconds) for device in known if uuid in (None, device))
        return GpuHistory(node_id=self._node_id, at=self._clock.now(), gpus=tuple(told))

    async def can_fit(self, asked: FitQuestion) -> FitAnswer:
        """Whether it would fit now. Raises `Malformed` when a GPU is named that is not here."""
        if self._is_elsewhere(asked.node_id):
            return await self._bus.request(CAN_FIT, asked, node_id=asked.node_id)
        as_measured = await self._measuring.current(self._look(asked))
        choice = self._book.choice(asked)
        if not choice.fits and not as_measured:
            await self._measuring.refresh()
            choice = self._book.choice(asked)
        return fit_view(choice, self._node_id, self._book.indices, self._clock.now())

    async def reserve(self, asked: ReserveRequest) -> Reservation:
        """All that is asked for. Raises `Conflict` with what is in the way, `Malformed`, `Unavailable`."""
        if self._is_elsewhere(asked.node_id):
            return await self._bus.request(RESERVE, asked, node_id=asked.node_id)
        name = asked.reservation_id or f"r-{uuid4().hex}"
        try:
            held = await self._reserve(name, asked)
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
        await self._measuring.woke()
        now = self._clock.monotonic()
        return await self._change(
            asked.reservation_id, lambda held: renewed(held, asked.token, asked.timeout_seconds, now)
        )

    async def commit(self, asked: Commit, node_id: str | None = None) -> Reservation:
        """Raises `NotFound`, `Forbidden`, `Conflict`, `Malformed` when no such process can hold it, `Unavailable`."""
        if self._is_elsewhere(node_id):
            return await self._bus.request(COMMIT, asked, node_id=node_id)
        holder = await self._holder(asked)
        await self._measuring.woke()
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
        return self._view(self._bookkeeping.known(reservation_id))

    def reservations(self, *, only_open: bool) -> Reservations:
        """The oldest first."""
        found = self._book.open_ones() if only_open else self._book.all()
        told = tuple(self._view(held) for held in found)
        return Reservations(node_id=self._node_id, at=self._clock.now(), reservations=told)

    async def reservations_of(self, node_id: str | None, *, only_open: bool) -> Reservations:
        """Another node's open ones, as it last told. Raises `NotFound`, `Unavailable`."""
        if node_id is not None and self._is_elsewhere(node_id):
            return await read_copy(self._bus, node_id)
        return self.reservations(only_open=only_open)

    def version(self) -> int:
        """Another number whenever reservations have changed."""
        return self._book.version

    def standing(self) -> Mapping[str, tuple[int | None, int, str | None]]:
        """Of each GPU and part of one what is free, what is held, and why none of it is given."""
        gpus = ((uuid, entry) for uuid, entry in self._book.ledger.items() if uuid != RAM)
        return {uuid: (entry.free_mb, entry.held_mb, entry.problem) for uuid, entry in gpus}

    def problem(self) -> str | None:
        """Why the ledger cannot be believed yet."""
        return None if self._measuring.has_measured else "the memory of this machine has not been measured yet"

    async def refresh(self) -> None:
        """Measure everything, now. Raises `Unavailable`."""
        await self._measuring.refresh()

    async def _reserve(self, name: str, asked: ReserveRequest) -> Held:
        def make(before: Held | None) -> Held:
            return self._granted(name, asked, self._book.choice(asked)) if before is None else self._same(before, asked)

        held = await self._at_a_guess(name, asked)
        if held is not None:
            return held
        as_measured = await self._measuring.current(self._look(asked))
        try:
            return await self._bookkeeping.add(name, make)
        except Conflict:
            if as_measured:
                raise
        await self._measuring.refresh()
        return await self._bookkeeping.add(name, make)

    async def _at_a_guess(self, name: str, asked: ReserveRequest) -> Held | None:
        """Claimed by what was known before the question; the look that must come after it is taken while the claim is
        written. None: it does not fit what was known, or what grew since is in the way."""
        looks: list[Look] = []

        def make(before: Held | None) -> Held | None:
            if before is not None:
                return self._same(before, asked)
            with suppress(Malformed):  # of GPUs that were not measured yet
                choice = self._book.choice(asked)
                if choice.fits:
                    # First, and in the step that claims: nothing that is claimed now can be released in between.
                    looks.append(self._look(asked))
                    return self._granted(name, asked, choice)
            return None

        async def prove(held: Held) -> bool:
            await self._measuring.current(looks[0])
            return self._book.bears(held)

        return await self._bookkeeping.attempt(name, make, prove)

    def _look(self, asked: FitQuestion) -> Look:
        return self._measuring.begin(gpus=asked.count > 0, ram=asked.ram_mb > 0)

    def _granted(self, name: str, asked: ReserveRequest, choice: Choice) -> Held:
        if self._book.open_count >= MOST_OPEN:
            raise Conflict(f"{MOST_OPEN} reservations are open here, and more are not kept: release some of them.")
        if not choice.fits:
            answer = fit_view(choice, self._node_id, self._book.indices, self._clock.now())
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
            machine_boot=self._bookkeeping.machine_boot,
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
        obstacle = await self._processes.obstacle(asked.pid or 0)
        if obstacle is not None:
            reason = f"process {asked.pid} {obstacle}; name the process that uses the memory."
            raise Malformed(f"pid: {reason}", field="pid", pid=asked.pid)
        start = await self._processes.start_of(asked.pid or 0)
        if start is None:
            raise Malformed(f"pid: there is no process {asked.pid} on this machine.", field="pid", pid=asked.pid)
        return Holder(pid=asked.pid, pid_start=start)

    async def _change(self, reservation_id: str, decide: Callable[[Held], Held]) -> Reservation:
        return self._view(await self._bookkeeping.change(reservation_id, decide))

    def _view(self, held: Held) -> Reservation:
        return reservation_view(held, self._node_id, self._book.indices, self._clock.monotonic())

    def _is_elsewhere(self, node_id: str | None) -> bool:
        return node_id is not None and node_id != self._node_id
