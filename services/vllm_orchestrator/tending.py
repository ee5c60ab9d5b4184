"""One round over all instances: look, decide, keep, act."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import (
    LOOK_AT_ENGINES,
    START_ENGINE,
    STOP_ENGINE,
    HostedEngine,
    LookAtEngines,
    StopEngine,
)
from libs.common.contracts.gpu_orchestrator import RELEASE, RESERVE, Release, ReserveRequest
from libs.common.contracts.node_registry import QUERY, NodeQuery, NodeState
from libs.common.contracts.vllm_instances import (
    Claim,
    DeployRequest,
    Instance,
    InstancePart,
    InstanceState,
    Replica,
    Stranded,
)
from libs.common.errors import Conflict, Forbidden, MeshError, NotFound, Unavailable
from libs.common.log.fenced_log import SteppedDown
from services.vllm_orchestrator.externals import Externals
from services.vllm_orchestrator.failures import Failure, Remedy
from services.vllm_orchestrator.keeping import Term
from services.vllm_orchestrator.machine import Effect, Sight, become, failed, step
from services.vllm_orchestrator.orders import key_of, start_of
from services.vllm_orchestrator.placing import base_of, guarded
from services.vllm_orchestrator.rollout import SERVING, changed, proceed, without
from services.vllm_orchestrator.seeking import Seeking
from services.vllm_orchestrator.stranding import Stranding

LOOK_SECONDS = 2.0
RESERVE_SECONDS = 5.0
START_SECONDS = 20.0
RESERVED_FOR_SECONDS = 60.0
EXTERNAL_SECONDS = 2.0
PATIENCE = timedelta(seconds=30)

Key = tuple[str, int, int, int]
"""Instance, replica, generation and rank."""

Served = tuple[str, str]
"""An address and a model."""

_log = structlog.get_logger()


class Tending:
    """`chance` gives a number in [0, 1), `new_secret` what nobody can guess. `seen` is what agents told last,
    for those who ask."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        seeking: Seeking,
        stranding: Stranding,
        externals: Externals,
        *,
        start_seconds: float,
        wait_seconds: float,
        join_seconds: float,
        chance: Callable[[], float],
        new_secret: Callable[[], str],
        count_failure: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self.seen: dict[Key, HostedEngine] = {}
        self._bus = bus
        self._clock = clock
        self._seeking = seeking
        self._stranding = stranding
        self._externals = externals
        self._asked_at: dict[Served, float] = {}
        self._start_seconds = start_seconds
        self._wait_seconds = wait_seconds
        self._chance = chance
        self._join_seconds = join_seconds
        self._new_secret = new_secret
        self._wake = wake
        self._count_failure = count_failure

    async def round(self, term: Term) -> None:
        """Raises `SteppedDown`, `StreamFull`."""
        for key, task in list(term.busy.items()):
            if task.done():
                del term.busy[key]
                task.result()
        idle = [
            (instance, replica)
            for instance in term.instances.by_name.values()
            for replica in instance.replicas
            if (instance.name, replica.number) not in term.busy
        ]
        told = await self._look({part.node_id for _, replica in idle for part in replica.parts})
        offline = await self._offline({node_id for node_id, engines in told.items() if engines is None})
        answers = await self._ask_externals([replica.request for _, replica in idle])
        for instance, replica in idle:
            sight = replace(
                self._sight(instance.name, replica, told, offline),
                external=answers.get(_served(replica.request) or ("", "")),
            )
            await self._step(term, instance.name, replica, sight)
        for name in list(term.instances.by_name):
            await self._proceed(term, name)
        await self._stranding.round(term)

    async def _proceed(self, term: Term, name: str) -> None:
        before = term.instances.by_name[name]
        after = await term.change(name, lambda now: now and proceed(now, self._clock.now()))
        if after != before:
            self._wake()

    async def _step(self, term: Term, name: str, replica: Replica, sight: Sight) -> None:
        after, effect = step(replica, sight)
        if after != replica:
            await self._become(term, name, replica, after)
            self._wake()
        elif effect is not None:
            acting = self._act(term, name, replica, effect)
            term.busy[name, replica.number] = asyncio.create_task(acting, name=f"{effect} {name} {replica.number}")

    async def _act(self, term: Term, name: str, replica: Replica, effect: Effect) -> None:
        acts: Mapping[Effect, Callable[[Term, str, Replica], Awaitable[None]]] = {
            Effect.PLACE: self._place,
            Effect.START: self._start,
            Effect.STOP: self._stop,
            Effect.RELEASE: self._release,
            Effect.FORGET: self._forget,
        }
        try:
            await acts[effect](term, name, replica)
        except (Unavailable, SteppedDown) as error:  # the next round, of whoever leads then, does it again
            _log.info("instance_waits", name=name, replica=replica.number, effect=effect, reason=error.message)
            await self._clock.sleep(1.0)
        self._wake()

    # What is done

    async def _place(self, term: Term, name: str, replica: Replica) -> None:
        """The intent is in the log before anything is reserved: whatever becomes of us, it is given back."""
        async with self._seeking.turn:
            instance = term.instances.by_name[name]
            try:
                place = await self._seeking.place(instance, replica, instance.generation + 1)
            except MeshError as error:
                await self._failed(term, name, replica, _refused(error, _remedy(error)))
                return
            planned = replica.model_copy(
                update={
                    "generation": instance.generation + 1,
                    "parts": guarded(sorted(place.parts, key=lambda part: part.rank), self._new_secret()),
                    "strategy": place.strategy,
                    "slots": place.slots,
                    "context_tokens": place.context_tokens,
                }
            )
            if not await self._intended(term, name, replica, planned):
                return
            try:
                parts = await self._reserved(name, planned)
            except MeshError as error:
                remedy = Remedy.ROOM if isinstance(error, Conflict) else Remedy.WAIT
                await self._failed(term, name, planned, _refused(error, remedy))
                return
            self._seeking.claimed(parts)
        kept = planned.model_copy(update={"parts": parts})
        reserved = become(kept, InstanceState.RESERVED, "", self._clock.now())
        await term.change(name, _swap(planned, reserved))

    async def _intended(self, term: Term, name: str, replica: Replica, planned: Replica) -> bool:
        """Whether it is in the log; not where another replica took the generation, or something else is wanted."""

        def decide(now: Instance | None) -> Instance | None:
            if now is None or now.generation + 1 != planned.generation:
                return now
            after = changed(now, replica, planned)
            return after if after == now else after.model_copy(update={"generation": planned.generation})

        after = await term.change(name, decide)
        return after is not None and planned in after.replicas

    async def _reserved(self, name: str, replica: Replica) -> tuple[InstancePart, ...]:
        """In the order of nodes, without waiting; whoever is refused gives all back."""
        tokens: dict[str, int] = {}
        for claim in sorted(_claims(replica.parts), key=lambda claim: (claim.node_id, claim.reservation_id)):
            asked = ReserveRequest(
                reservation_id=claim.reservation_id,
                gpu_uuids=claim.gpu_uuids or None,
                gpu_count=len(claim.gpu_uuids),
                required_mb=claim.required_mb,
                ram_mb=claim.ram_mb,
                timeout_seconds=RESERVED_FOR_SECONDS,
                owner="vllm_orchestrator",
                purpose=f"instance {name}, replica {replica.number}, generation {replica.generation}",
            )
            held = await self._bus.request(RESERVE, asked, node_id=claim.node_id, timeout=RESERVE_SECONDS)
            tokens[claim.reservation_id] = held.token
        return tuple(part.holding(tokens) for part in replica.parts)

    async def _start(self, term: Term, name: str, replica: Replica) -> None:
        for part in replica.parts:
            try:
                asked = start_of(name, replica, part, self._join_seconds)
                await self._bus.request(START_ENGINE, asked, node_id=part.node_id, timeout=START_SECONDS)
            except MeshError as error:
                if error.retryable and self._clock.now() - replica.since < PATIENCE:
                    raise
                remedy = Remedy.ELSEWHERE if isinstance(error, (Forbidden, NotFound)) else Remedy.LATER
                await self._failed(term, name, replica, _refused(error, remedy), node_id=part.node_id)
                return
        started = become(replica, InstanceState.STARTING, "", self._clock.now())
        await term.change(name, _swap(replica, started))

    async def _stop(self, term: Term, name: str, replica: Replica) -> None:
        drain = {"drain_seconds": replica.drain_seconds}
        for part in self._to_be_ended(name, replica):
            asked = StopEngine.model_validate(key_of(name, replica, part) | drain)
            try:
                await self._bus.request(STOP_ENGINE, asked, node_id=part.node_id, timeout=LOOK_SECONDS)
            except Unavailable as error:
                _log.info("engine_not_stopped_yet", name=name, node=part.node_id, reason=error.message)
        await self._clock.sleep(0.2)

    def _to_be_ended(self, name: str, replica: Replica) -> Sequence[InstancePart]:
        """First what takes requests: the ranks behind it are needed for those it has in hand."""
        doors = [part for part in replica.parts if part.serves]
        seen = (self.seen.get((name, replica.number, replica.generation, part.rank)) for part in doors)
        drains = replica.drain_seconds > 0 and any(each and each.ended_at is None for each in seen)
        return doors if drains else replica.parts

    async def _release(self, term: Term, name: str, replica: Replica) -> None:
        offline = await self._offline({part.node_id for part in replica.parts})
        lost = [part for part in replica.parts if part.node_id in offline]
        if lost:
            await term.strand([_stranded(name, replica, part) for part in lost])
        for claim in _claims(part for part in replica.parts if part not in lost):
            try:
                given_back = Release(reservation_id=claim.reservation_id)
                await self._bus.request(RELEASE, given_back, node_id=claim.node_id, timeout=RESERVE_SECONDS)
            except NotFound:
                continue  # it was never made, or ended with its process long ago
        self._seeking.given_back(replica.parts)
        await term.change(name, _each(replica.number, lambda now: now.model_copy(update={"parts": ()})))

    async def _forget(self, term: Term, name: str, replica: Replica) -> None:
        await term.change(name, lambda now: now and (without(now, replica) if replica in now.replicas else now))

    async def _failed(
        self, term: Term, name: str, replica: Replica, failure: Failure, node_id: str | None = None
    ) -> None:
        sight = Sight(now=self._clock.now(), engines={}, chance=self._chance(), wait_seconds=self._wait_seconds)
        await self._become(term, name, replica, failed(replica, failure, sight, node_id=node_id))

    async def _become(self, term: Term, name: str, before: Replica, after: Replica) -> None:
        instance = await term.change(name, _swap(before, after))
        served = before.state in SERVING and after.state is InstanceState.STOPPING
        if (served or after.failures > before.failures) and instance is not None and after in instance.replicas:
            self._count_failure(after.failure)

    # What is seen

    async def _look(self, node_ids: Iterable[str]) -> Mapping[str, Mapping[Key, HostedEngine] | None]:
        """None for an agent that does not answer."""

        async def one(node_id: str) -> tuple[str, Mapping[Key, HostedEngine] | None]:
            try:
                told = await self._bus.request(LOOK_AT_ENGINES, LookAtEngines(), node_id=node_id, timeout=LOOK_SECONDS)
            except MeshError:
                return node_id, None
            return node_id, {_key_of(each): each for each in told.engines}

        found = dict(await asyncio.gather(*(one(node_id) for node_id in node_ids)))
        self.seen = {key: each for engines in found.values() for key, each in (engines or {}).items()}
        return found

    async def _ask_externals(self, requests: Iterable[DeployRequest]) -> Mapping[Served, str]:
        """Those that were not asked a few seconds ago."""
        now = self._clock.monotonic()
        known = {served for each in requests if (served := _served(each)) is not None}
        self._asked_at = {served: at for served, at in self._asked_at.items() if served in known}
        due = [each for each in known if now - self._asked_at.get(each, -math.inf) >= EXTERNAL_SECONDS]
        self._asked_at |= dict.fromkeys(due, now)
        problems = await asyncio.gather(*(self._externals.problem(url, model_name) for url, model_name in due))
        return dict(zip(due, problems, strict=True))

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
        name: str,
        replica: Replica,
        told: Mapping[str, Mapping[Key, HostedEngine] | None],
        offline: frozenset[str],
    ) -> Sight:
        engines: dict[int, HostedEngine | None] = {}
        for part in replica.parts:
            answered = told.get(part.node_id)
            if answered is not None:
                engines[part.rank] = answered.get((name, replica.number, replica.generation, part.rank))
        return Sight(
            now=self._clock.now(),
            engines=engines,
            offline=offline,
            start_seconds=self._start_seconds,
            wait_seconds=self._wait_seconds,
            chance=self._chance(),
        )


def _swap(before: Replica, after: Replica) -> Callable[[Instance | None], Instance | None]:
    """Only if nobody wanted something else of it meanwhile."""
    return lambda now: now and changed(now, before, after)


def _each(number: int, decide: Callable[[Replica], Replica]) -> Callable[[Instance | None], Instance | None]:
    """Whatever was wanted of that replica meanwhile."""

    def change(now: Instance | None) -> Instance | None:
        found = next((each for each in now.replicas if each.number == number), None) if now else None
        return now if now is None or found is None else changed(now, found, decide(found))

    return change


def _refused(error: MeshError, remedy: Remedy) -> Failure:
    return Failure(error.code, remedy, error.message)


def _remedy(error: MeshError) -> Remedy:
    if isinstance(error, Conflict):
        return Remedy.ROOM
    return Remedy.WAIT if error.retryable else Remedy.GIVE_UP


def _key_of(engine: HostedEngine) -> Key:
    return (engine.instance, engine.replica, engine.generation, engine.rank)


def _served(request: DeployRequest) -> Served | None:
    """By an engine that somebody else runs."""
    return None if request.url is None else (base_of(request.url), request.model_name or "")


def _claims(parts: Iterable[InstancePart]) -> list[Claim]:
    return [claim for part in parts for claim in part.claims]


def _stranded(name: str, replica: Replica, part: InstancePart) -> Stranded:
    place = {"node_id": part.node_id, "reservation_id": part.reservation_id}
    return Stranded.model_validate(key_of(name, replica, part) | place)
