"""Keeps memory and streams within their bounds, so that a mesh that runs for weeks does not fill up."""

import json
from collections.abc import Mapping

import structlog

from libs.common.bus.bus import Bus, StreamState
from libs.common.clock import Clock
from libs.common.contracts.streams import WORK_DONE, WORK_IN, WORK_LOG, WORK_OUT, Stream
from libs.common.contracts.work_log import PayloadKept
from libs.common.errors import Unavailable
from libs.common.log.fenced_log import SteppedDown
from services.work_marshaling.payloads import Payloads
from services.work_marshaling.term import Term

ALARM_RATIO = 0.8
CROWDED_RATIO = 0.5
PURGE_AT_LEAST = 1_000
MOVED_AT_ONCE = 200
LOG_RATIO = 0.25

_log = structlog.get_logger()


class Upkeep:
    def __init__(self, bus: Bus, clock: Clock, term: Term, payloads: Payloads) -> None:
        self._bus = bus
        self._clock = clock
        self._term = term
        self._payloads = payloads
        self._alarmed: set[str] = set()
        self.fill: Mapping[str, float] = {}

    async def run(self) -> None:
        """Runs until cancelled. Raises `SteppedDown` when an input stream was made anew under us."""
        while True:
            try:
                await self.tidy()
            except Unavailable as error:
                _log.info("upkeep_waits", reason=error.message)
            await self._clock.sleep(self._term.rules.upkeep_seconds)

    async def tidy(self) -> None:
        await self._term.journal.lead()
        self._term.memory.forget(self._clock.now())
        self._term.forget_nodes()
        states = {stream.name: await self._state(stream) for stream in (WORK_IN, WORK_OUT, WORK_LOG, WORK_DONE)}
        self.fill = {name: state.bytes / max(1, state.max_bytes) for name, state in states.items()}
        for name, ratio in self.fill.items():
            self._tell_fill(name, ratio)
        if self.fill[WORK_LOG.name] > LOG_RATIO:
            self._term.journal.checkpoint_wanted = True
        await self._trim_input(states[WORK_IN.name])
        await self._trim_outcomes(states[WORK_OUT.name])

    async def _state(self, stream: Stream) -> StreamState:
        state = await self._bus.stream_state(stream)
        made = self._term.origins.get(stream.name)
        if made is not None and made != state.created:
            raise SteppedDown(f"the stream {stream.name} was made anew", fenced=False)
        return state

    def _tell_fill(self, name: str, ratio: float) -> None:
        self._term.meter.stream_fill(name, ratio)
        if ratio >= ALARM_RATIO and name not in self._alarmed:
            self._alarmed.add(name)
            _log.error("stream_nearly_full", stream=name, fill_ratio=round(ratio, 3))
        elif ratio < ALARM_RATIO:
            self._alarmed.discard(name)

    async def _trim_input(self, state: StreamState) -> None:
        """Everything that was read and whose payload is in memory may go."""
        crowded = self.fill[WORK_IN.name] > CROWDED_RATIO
        if crowded:
            await self._move_payloads(state)
        below = self._term.journal.durable_in + 1
        needed = min((item.sequence for item in self._term.memory.far_items()), default=below)
        # An end that is not on disk yet may still be undone by a crash: then its payload is needed after all.
        await self._term.journal.flushed()
        await self._purge(WORK_IN, state, min(needed, below), crowded=crowded)

    async def _move_payloads(self, state: StreamState) -> None:
        """Payloads of old open items would keep everything younger in the stream: they move into the log."""
        middle = (state.first_sequence + state.last_sequence) // 2
        old = [item for item in self._term.memory.far_items() if item.sequence <= middle][:MOVED_AT_ONCE]
        for item in old:
            payload = await self._payloads.of(item)
            present = self._term.memory.items.get(item.work_id)
            if payload is not None and present is not None and present.spec.payload is None:
                read = json.loads(payload)
                kept = PayloadKept(work_id=item.work_id, payload=read, payload_bytes=item.spec.payload_bytes)
                self._term.keep((kept,))
        if old:
            await self._term.journal.flushed()

    async def _trim_outcomes(self, state: StreamState) -> None:
        """Outcomes that were read may go once nobody may ask for their results any more, or when it gets crowded."""
        read = self._term.journal.durable_out + 1
        oldest = self._term.memory.oldest_result()
        below = read if oldest is None else min(read, oldest)
        crowded = self.fill[WORK_OUT.name] > CROWDED_RATIO
        if crowded:
            below = min(read, max(below, (state.first_sequence + state.last_sequence) // 2))
        await self._purge(WORK_OUT, state, below, crowded=crowded)

    async def _purge(self, stream: Stream, state: StreamState, below: int, *, crowded: bool) -> None:
        if below - state.first_sequence >= (1 if crowded else PURGE_AT_LEAST):
            await self._bus.purge(stream, below=below)
            _log.debug("stream_trimmed", stream=stream.name, below=below)
