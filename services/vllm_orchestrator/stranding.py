"""Engines on nodes that were given up: should such a node come back, they are ended and give back what they claim."""

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import LOOK_AT_ENGINES, STOP_ENGINE, EngineKey, LookAtEngines, StopEngine
from libs.common.contracts.gpu_orchestrator import RELEASE, Release
from libs.common.contracts.vllm_instances import Stranded
from libs.common.errors import MeshError, NotFound
from services.vllm_orchestrator.keeping import Term

ASK_SECONDS = 2.0

_log = structlog.get_logger()


class Stranding:
    def __init__(self, bus: Bus, clock: Clock, *, every_seconds: float) -> None:
        self._bus = bus
        self._clock = clock
        self._every_seconds = every_seconds
        self._next = 0.0

    async def round(self, term: Term) -> None:
        """Raises `SteppedDown`, `StreamFull`."""
        now = self._clock.monotonic()
        if now < self._next or not term.instances.stranded:
            return
        self._next = now + self._every_seconds
        for each in list(term.instances.stranded.values()):
            try:
                over = await self._ended(each)
            except MeshError:
                continue  # its node is still away
            if over:
                _log.info("stranded_engine_ended", name=each.instance, node=each.node_id, generation=each.generation)
                await term.settle(each.reservation_id)

    async def _ended(self, stranded: Stranded) -> bool:
        key = stranded.model_dump(include=set(EngineKey.model_fields))
        told = await self._bus.request(
            LOOK_AT_ENGINES, LookAtEngines(instance=stranded.instance), node_id=stranded.node_id, timeout=ASK_SECONDS
        )
        here = [each for each in told.engines if each.model_dump(include=set(key)) == key and each.ended_at is None]
        if here:
            stop = StopEngine.model_validate(key)
            await self._bus.request(STOP_ENGINE, stop, node_id=stranded.node_id, timeout=ASK_SECONDS)
            return False
        try:
            given_back = Release(reservation_id=stranded.reservation_id)
            await self._bus.request(RELEASE, given_back, node_id=stranded.node_id, timeout=ASK_SECONDS)
        except NotFound:
            return True  # it ended with its process
        return True
