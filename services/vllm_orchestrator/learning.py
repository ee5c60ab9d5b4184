"""Learns from starts: what an engine's log and metrics tell is kept, and corrects what is estimated of the next."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import NoReturn

import structlog
from pydantic import ValidationError

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.streams import VLLM_STARTS
from libs.common.contracts.vllm_instances import KeptStart, KeptStarts, KeptTerms
from libs.common.errors import MeshError, Unavailable, WrongRevision
from libs.inference.planner.calibration import Kind, MeasuredStart, Terms
from libs.inference.planner.observed import measured_start
from libs.inference.planner.versions import Engine, engine_of
from libs.inference.vllm_log import logged_start
from libs.inference.vllm_metrics import told_cache
from services.vllm_orchestrator.asking import facts_of
from services.vllm_orchestrator.model import StartedEngine
from services.vllm_orchestrator.models import ModelSource
from services.vllm_orchestrator.reading import documents_of

ROUND_SECONDS = 5.0
STARTS_OF_A_KIND = 8
"""Of starts that are alike the latest are kept: a median needs no more, and what is old is of other drivers."""

MOST_STARTS = 2000
MOST_TRIES = 5

_log = structlog.get_logger()

Started = Callable[[], Awaitable[Iterable[StartedEngine]]]
"""Engines that serve now, those that were told before too."""

Read = Callable[[StartedEngine], Awaitable[str]]


class Learning:
    """`read_log` gives what an engine wrote, `read_metrics` what it tells of itself now."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        models: ModelSource,
        *,
        started: Started,
        read_log: Read,
        read_metrics: Read,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._models = models
        self._started = started
        self._read_log = read_log
        self._read_metrics = read_metrics
        self._kept: dict[str, KeptStart] = {}
        self._tries: dict[str, int] = {}

    @property
    def starts(self) -> Sequence[MeasuredStart]:
        """What is known, of this orchestrator and all others."""
        return [_measured(kept) for kept in self._kept.values()]

    def count(self) -> int:
        return len(self._kept)

    async def known(self) -> KeptStarts:
        """The latest first."""
        return KeptStarts(starts=tuple(sorted(self._kept.values(), key=lambda each: each.at, reverse=True)))

    async def hear(self) -> NoReturn:
        """Take what is kept, of whoever kept it. Until cancelled."""
        while True:
            try:
                async for entry in self._bus.watch(VLLM_STARTS):
                    self._take(entry.key, entry.payload)
            except Unavailable as error:
                _log.info("starts_not_heard", reason=error.message)
            await self._clock.sleep(ROUND_SECONDS)

    async def run(self) -> NoReturn:
        """Look at engines that came up. Until cancelled."""
        while True:
            try:
                await self.round()
            except (Unavailable, WrongRevision) as error:
                _log.info("starts_not_kept", reason=error.message)
            await self._clock.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Raises `Unavailable`, `WrongRevision` where another orchestrator keeps the same at this moment."""
        engines = {each.key: each for each in await self._started()}
        self._tries = {key: count for key, count in self._tries.items() if key in engines}
        kept = {each.start for each in self._kept.values()}
        for key, engine in engines.items():
            if key in kept or self._tries.get(key, 0) >= MOST_TRIES:
                continue
            self._tries[key] = self._tries.get(key, 0) + 1
            try:
                found = await self._measured(engine)
            except MeshError as error:
                _log.info("start_not_measured", start=key, reason=error.message)
                continue
            self._tries[key] = MOST_TRIES
            if found is not None:
                await self._keep(found)

    async def _measured(self, engine: StartedEngine) -> KeptStart | None:
        """Raises `MeshError` where the model or the machine cannot be read now, or the log may be readable later."""
        logged, told = logged_start(await self._log(engine)), told_cache(await self._metrics(engine))
        version = logged.version or engine.request.vllm_version
        assert engine.request.model_name is not None
        facts = facts_of(engine.request, await documents_of(self._models, engine.request))
        found = measured_start(
            facts, engine.arguments, engine_of(version) if version else Engine(), engine.gpus, logged, told
        )
        if found is None:
            return None
        return KeptStart(
            start=engine.key,
            model_name=engine.request.model_name,
            at=self._clock.now(),
            architecture=found.kind.architecture,
            quantisation=found.kind.quantisation,
            version=".".join(map(str, found.kind.version)),
            gpu=found.kind.gpu,
            together=found.kind.together,
            predicted=_terms(found.predicted),
            measured=_terms(found.measured),
        )

    async def _log(self, engine: StartedEngine) -> str:
        """Without one after the last try: metrics tell less, but they tell."""
        try:
            return await self._read_log(engine)
        except MeshError:
            if self._tries[engine.key] < MOST_TRIES:
                raise
            return ""

    async def _metrics(self, engine: StartedEngine) -> str:
        try:
            return await self._read_metrics(engine)
        except MeshError as error:
            _log.info("metrics_not_read", start=engine.key, reason=error.message)
            return ""

    async def _keep(self, start: KeptStart) -> None:
        """In the place of the oldest of its kind."""
        kind = sha256(repr(_measured(start).kind).encode()).hexdigest()[:24]
        places = [f"{kind}.{place}" for place in range(STARTS_OF_A_KIND)]
        free = next((place for place in places if place not in self._kept), None)
        key = free or min(places, key=lambda place: self._kept[place].at)
        if free is not None and len(self._kept) >= MOST_STARTS:
            oldest = min(self._kept, key=lambda each: self._kept[each].at)
            await self._forget(oldest)
        entry = await self._bus.get(VLLM_STARTS, key)
        await self._bus.put(VLLM_STARTS, key, start, revision=entry.revision if entry else 0)
        self._kept[key] = start
        _log.info("start_measured", start=start.start, model_name=start.model_name, gpu=start.gpu)

    async def _forget(self, key: str) -> None:
        entry = await self._bus.get(VLLM_STARTS, key)
        if entry is not None:
            await self._bus.delete(VLLM_STARTS, key, revision=entry.revision)
        self._kept.pop(key, None)

    def _take(self, key: str, payload: bytes | None) -> None:
        if payload is None:
            self._kept.pop(key, None)
            return
        try:
            self._kept[key] = KeptStart.model_validate_json(payload)
        except ValidationError as error:
            _log.warning("start_not_understood", key=key, reason=str(error)[:200])


def _terms(terms: Terms) -> KeptTerms:
    return KeptTerms(activation_bytes=terms.activation, cuda_graph_bytes=terms.graphs, non_torch_bytes=terms.non_torch)


def _measured(kept: KeptStart) -> MeasuredStart:
    return MeasuredStart(
        kind=Kind(
            architecture=kept.architecture,
            quantisation=kept.quantisation,
            version=engine_of(kept.version).version,
            gpu=kept.gpu,
            together=kept.together,
        ),
        predicted=_of(kept.predicted),
        measured=_of(kept.measured),
    )


def _of(terms: KeptTerms) -> Terms:
    return Terms(activation=terms.activation_bytes, graphs=terms.cuda_graph_bytes, non_torch=terms.non_torch_bytes)
