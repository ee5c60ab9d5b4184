"""One round over all instances: look, decide, keep, act."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import (
    LOOK_AT_ENGINES,
    START_ENGINE,
    STOP_ENGINE,
    HostedEngine,
    LookAtEngines,
    StartEngine,
    StopEngine,
)
from libs.common.contracts.gpu_orchestrator import RELEASE, RESERVE, Release, ReserveRequest
from libs.common.contracts.node_registry import QUERY, NodeQuery, NodeState
from libs.common.contracts.vllm_instances import Instance, InstancePart, InstanceState
from libs.common.errors import Conflict, Forbidden, MeshError, NotFound, Unavailable
from libs.common.log.fenced_log import SteppedDown
from services.vllm_orchestrator.failures import Failure, Remedy
from services.vllm_orchestrator.keeping import Term
from services.vllm_orchestrator.machine import Effect, Sight, become, failed, step
from services.vllm_orchestrator.placing import (
    Place,
    candidates,
    eased_request,
    is_llama,
    place_of_llama,
    place_of_plan,
)
from services.vllm_orchestrator.planning import Planning

LOOK_SECONDS = 2.0
RESERVE_SECONDS = 5.0
START_SECONDS = 20.0
RESERVED_FOR_SECONDS = 60.0
PATIENCE = timedelta(seconds=30)

Key = tuple[str, int, int]

_log = structlog.get_logger()


class Tending:
    """`chance` gives a number in [0, 1). `seen` is what agents told last, for those who ask."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        planning: Planning,
        *,
        start_seconds: float,
        chance: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.seen: dict[Key, HostedEngine] = {}
        self._bus = bus
        self._clock = clock
        self._planning = planning
        self._start_seconds = start_seconds
        self._chance = chance
        self._wake = wake

    async def choose(self, instance: Instance) -> Place:
        """Where it would go now. Raises `Conflict` where it does not fit, and what `Planning.plan` raises."""
        request = eased_request(instance.request, instance.eased)
        nodes = candidates(request, await self._planning.registered(), instance.lost)
        if is_llama(request):
            return place_of_llama(instance, nodes)
        return place_of_plan(instance, await self._planning.plan_on(request, nodes))

    async def round(self, term: Term) -> None:
        """Raises `SteppedDown`, `StreamFull`."""
        for name, task in list(term.busy.items()):
            if task.done():
                del term.busy[name]
                task.result()
        open_ones = [each for each in term.instances.by_name.values() if each.name not in term.busy]
        told = await self._look({part.node_id for each in open_ones for part in each.parts})
        offline = await self._offline({node_id for node_id, engines in told.items() if engines is None})
        for instance in open_ones:
            await self._step(term, instance, self._sight(instance, told, offline))

    async def _step(self, term: Term, instance: Instance, sight: Sight) -> None:
        def decide(current: Instance | None) -> Instance | None:
            return step(current, sight)[0] if current == instance and current is not None else current

        after, effect = step(instance, sight)
        if after != instance:
            await term.change(instance.name, decide)
            self._wake()
        elif effect is not None:
            acting = self._act(term, instance, effect, sight)
            term.busy[instance.name] = asyncio.create_task(acting, name=f"{effect} {instance.name}")

    async def _act(self, term: Term, instance: Instance, effect: Effect, sight: Sight) -> None:
        acts: Mapping[Effect, Callable[[Term, Instance], Awaitable[None]]] = {
            Effect.PLACE: self._place,
            Effect.START: self._start,
            Effect.STOP: self._stop,
            Effect.RELEASE: self._release,
            Effect.FORGET: self._forget,
        }
        try:
            await acts[effect](term, instance)
        except (Unavailable, SteppedDown) as error:  # the next round, of whoever leads then, does it again
            _log.info("instance_waits", name=instance.name, effect=effect, reason=error.message)
            await self._clock.sleep(1.0)
        self._wake()

    # What is done

    async def _place(self, term: Term, instance: Instance) -> None:
        """The intent is in the log before anything is reserved: whatever becomes of us, it is given back."""
        try:
            place = await self.choose(instance)
        except MeshError as error:
            waits = isinstance(error, Conflict) or error.retryable
            await self._failed(term, instance, _refused(error, Remedy.WAIT if waits else Remedy.GIVE_UP))
            return
        planned = instance.model_copy(
            update={
                "generation": instance.generation + 1,
                "parts": tuple(sorted(place.parts, key=lambda part: part.rank)),
                "strategy": place.strategy,
                "slots": place.slots,
                "context_tokens": place.context_tokens,
            }
        )
        if await term.change(instance.name, _swap(instance, planned)) != planned:
            return
        try:
            parts = await self._reserved(planned)
        except MeshError as error:
            await self._failed(term, planned, _refused(error, Remedy.WAIT))
            return
        kept = planned.model_copy(update={"parts": parts})
        reserved = become(kept, InstanceState.RESERVED, "", self._clock.now())
        await term.change(instance.name, _swap(planned, reserved))

    async def _reserved(self, instance: Instance) -> tuple[InstancePart, ...]:
        """In the order of nodes, without waiting; whoever is refused gives all back."""
        tokens: dict[int, int] = {}
        for part in sorted(instance.parts, key=lambda part: part.node_id):
            asked = ReserveRequest(
                reservation_id=part.reservation_id,
                gpu_uuids=part.gpu_uuids or None,
                gpu_count=len(part.gpu_uuids),
                required_mb=part.required_mb,
                ram_mb=part.ram_mb,
                timeout_seconds=RESERVED_FOR_SECONDS,
                owner="vllm_orchestrator",
                purpose=f"instance {instance.name}, generation {instance.generation}",
            )
            held = await self._bus.request(RESERVE, asked, node_id=part.node_id, timeout=RESERVE_SECONDS)
            tokens[part.rank] = held.token
        return tuple(part.model_copy(update={"token": tokens[part.rank]}) for part in instance.parts)

    async def _start(self, term: Term, instance: Instance) -> None:
        for part in instance.parts:
            try:
                await self._bus.request(
                    START_ENGINE, _asked(instance, part), node_id=part.node_id, timeout=START_SECONDS
                )
            except MeshError as error:
                if error.retryable and self._clock.now() - instance.since < PATIENCE:
                    raise
                remedy = Remedy.ELSEWHERE if isinstance(error, Forbidden) else Remedy.LATER
                await self._failed(term, instance, _refused(error, remedy), node_id=part.node_id)
                return
        started = become(instance, InstanceState.STARTING, "", self._clock.now())
        await term.change(instance.name, _swap(instance, started))

    async def _stop(self, term: Term, instance: Instance) -> None:
        for part in instance.parts:
            asked = StopEngine(instance=instance.name, generation=instance.generation, rank=part.rank)
            try:
                await self._bus.request(STOP_ENGINE, asked, node_id=part.node_id, timeout=LOOK_SECONDS)
            except Unavailable as error:
                _log.info("engine_not_stopped_yet", name=instance.name, node=part.node_id, reason=error.message)
        await self._clock.sleep(0.2)

    async def _release(self, term: Term, instance: Instance) -> None:
        offline = await self._offline({part.node_id for part in instance.parts})
        for part in instance.parts:
            if part.node_id in offline:
                continue
            try:
                given_back = Release(reservation_id=part.reservation_id)
                await self._bus.request(RELEASE, given_back, node_id=part.node_id, timeout=RESERVE_SECONDS)
            except NotFound:
                continue  # it was never made, or ended with its process long ago
        await term.change(instance.name, lambda now: now and now.model_copy(update={"parts": ()}))

    async def _forget(self, term: Term, instance: Instance) -> None:
        await term.change(instance.name, lambda now: None if now is None or now.wanted == "gone" else now)

    async def _failed(self, term: Term, instance: Instance, failure: Failure, node_id: str | None = None) -> None:
        sight = Sight(now=self._clock.now(), engines={}, chance=self._chance())
        await term.change(instance.name, _swap(instance, failed(instance, failure, sight, node_id=node_id)))

    # What is seen

    async def _look(self, node_ids: Iterable[str]) -> Mapping[str, Mapping[Key, HostedEngine] | None]:
        """None for an agent that does not answer."""

        async def one(node_id: str) -> tuple[str, Mapping[Key, HostedEngine] | None]:
            try:
                told = await self._bus.request(LOOK_AT_ENGINES, LookAtEngines(), node_id=node_id, timeout=LOOK_SECONDS)
            except MeshError:
                return node_id, None
            return node_id, {(each.instance, each.generation, each.rank): each for each in told.engines}

        found = dict(await asyncio.gather(*(one(node_id) for node_id in node_ids)))
        self.seen = {key: each for engines in found.values() for key, each in (engines or {}).items()}
        return found

    async def _offline(self, silent: set[str]) -> frozenset[str]:
        """Of these, those that the registry believes to be gone; what it does not know is only silent."""
        if not silent:
            return frozenset()
        try:
            asked = NodeQuery(node_ids=tuple(silent)[:1000], limit=1000)
            found = await self._bus.request(QUERY, asked, timeout=LOOK_SECONDS)
        except MeshError:
            return frozenset()
        return frozenset(node.node_id for node in found.nodes if node.state is NodeState.OFFLINE)

    def _sight(
        self,
        instance: Instance,
        told: Mapping[str, Mapping[Key, HostedEngine] | None],
        offline: frozenset[str],
    ) -> Sight:
        engines: dict[int, HostedEngine | None] = {}
        for part in instance.parts:
            answered = told.get(part.node_id)
            if answered is not None:
                engines[part.rank] = answered.get((instance.name, instance.generation, part.rank))
        return Sight(
            now=self._clock.now(),
            engines=engines,
            offline=offline,
            start_seconds=self._start_seconds,
            chance=self._chance(),
        )


def _swap(before: Instance, after: Instance) -> Callable[[Instance | None], Instance | None]:
    """Only if nobody wanted something else meanwhile."""
    return lambda now: after if now == before else now


def _refused(error: MeshError, remedy: Remedy) -> Failure:
    return Failure(error.code, remedy, error.message)


def _asked(instance: Instance, part: InstancePart) -> StartEngine:
    fields: dict[str, Any] = {
        "instance": instance.name,
        "generation": instance.generation,
        "rank": part.rank,
        "program": instance.request.engine,
        "model_name": instance.request.model_name,
        "arguments": part.arguments,
        "environment": part.environment,
        "serves": "--headless" not in part.arguments,
        "slots": instance.slots,
        "context_tokens": instance.context_tokens,
        "device": "cuda" if part.gpu_uuids else "cpu",
        "reservation_id": part.reservation_id,
        "reservation_token": part.token,
    }
    return StartEngine.model_validate(fields)
