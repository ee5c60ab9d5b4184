"""What is wanted of instances, and what is told of them."""

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import ENGINE_LOG, ReadEngineLog
from libs.common.contracts.vllm_instances import (
    ComposeFile,
    DeployRequest,
    Eased,
    Instance,
    InstanceEvents,
    InstanceLog,
    InstancePart,
    InstancesFound,
    InstanceState,
    InstanceView,
    PartView,
)
from libs.common.errors import Conflict, NotFound
from services.vllm_orchestrator.compose import compose_file
from services.vllm_orchestrator.keeping import Keeping, Term
from services.vllm_orchestrator.tending import Tending

LOG_SECONDS = 5.0


class Deployments:
    def __init__(self, bus: Bus, clock: Clock, keeping: Keeping, tending: Tending) -> None:
        self._bus = bus
        self._clock = clock
        self._keeping = keeping
        self._tending = tending

    async def deploy(self, request: DeployRequest) -> InstanceView:
        """The same again changes nothing. Raises what `Planning.plan` raises, and `Conflict` where it does not fit."""
        term = self._keeping.term
        now = self._clock.now()
        known = term.instances.by_name.get(request.instance_name)
        if known is not None and known.request == request and known.wanted != "gone":
            return self._view(known)
        fresh = Instance(name=request.instance_name, request=request, created_at=now, since=now)
        await self._refuse_what_cannot_be(fresh, replaces=known is not None)

        def decide(current: Instance | None) -> Instance:
            wanted = "running" if request.auto_start else "stopped"
            if current is None:
                state = InstanceState.PLANNED if request.auto_start else InstanceState.STOPPED
                return fresh.model_copy(update={"wanted": wanted, "state": state})
            return _anew(current, "another deployment takes its place", request=request, wanted=wanted)

        return self._changed(await term.change(request.instance_name, decide))

    async def restart(self, name: str) -> InstanceView:
        """Raises `NotFound`."""

        def decide(current: Instance | None) -> Instance:
            return _anew(_found(name, current), "a restart was asked for", wanted="running")

        return self._changed(await self._keeping.term.change(name, decide))

    async def delete(self, name: str) -> InstanceView:
        """It ends, gives back what it claims, and is gone. Raises `NotFound`."""

        def decide(current: Instance | None) -> Instance:
            return _found(name, current).model_copy(update={"wanted": "gone"})

        return self._changed(await self._keeping.term.change(name, decide))

    async def all(self) -> InstancesFound:
        known = self._keeping.term.instances.by_name
        return InstancesFound(instances=tuple(self._view(known[name]) for name in sorted(known)))

    async def one(self, name: str) -> InstanceView:
        """Raises `NotFound`."""
        return self._view(self._known(name))

    async def events(self, name: str) -> InstanceEvents:
        """Raises `NotFound`."""
        self._known(name)
        return InstanceEvents(events=tuple(self._keeping.term.instances.events.get(name, ())))

    async def log(self, name: str, rank: int, characters: int) -> InstanceLog:
        """The end of what its process wrote, of the last start. Raises `NotFound`, `Unavailable`."""
        instance = self._known(name)
        part = _part(instance, rank)
        asked = ReadEngineLog(instance=name, generation=instance.generation, rank=rank, characters=characters)
        told = await self._bus.request(ENGINE_LOG, asked, node_id=part.node_id, timeout=LOG_SECONDS)
        return InstanceLog(instance_name=name, rank=rank, node_id=part.node_id, text=told.text)

    async def compose(self, name: str, rank: int) -> ComposeFile:
        """Raises `NotFound`, `Conflict` for an engine that has no image."""
        instance = self._known(name)
        return compose_file(instance, _part(instance, rank))

    def known(self) -> tuple[Instance, ...] | None:
        """All instances; None while another orchestrator looks after them."""
        return tuple(self._keeping.term.instances.by_name.values()) if self._keeping.leads() else None

    def address(self, instance: Instance) -> str | None:
        """Where it answers, as its agent told last."""
        told = (self._tending.seen.get((instance.name, instance.generation, part.rank)) for part in instance.parts)
        return next((each.url for each in told if each and each.url), None)

    def count(self, state: InstanceState) -> float:
        """How many instances are in it; none while another orchestrator looks after them."""
        known = self._keeping.term.instances.by_name.values() if self._keeping.leads() else ()
        return sum(instance.state is state for instance in known)

    async def look_after(self, term: Term) -> None:
        await self._tending.round(term)

    async def _refuse_what_cannot_be(self, fresh: Instance, *, replaces: bool) -> None:
        """What is replaced still takes the place that the new one may need."""
        try:
            await self._tending.choose(fresh)
        except Conflict:
            if not replaces:
                raise

    def _changed(self, instance: Instance | None) -> InstanceView:
        assert instance is not None
        self._keeping.wake()
        return self._view(instance)

    def _known(self, name: str) -> Instance:
        return _found(name, self._keeping.term.instances.by_name.get(name))

    def _view(self, instance: Instance) -> InstanceView:
        return InstanceView(
            instance_name=instance.name,
            model_name=instance.request.model_name or "",
            engine=instance.request.engine,
            state=instance.state,
            wanted=instance.wanted,
            problem=instance.reason,
            generation=instance.generation,
            strategy=instance.strategy,
            parts=tuple(self._part_view(instance, part) for part in instance.parts),
            failures=instance.failures,
            not_before=instance.not_before,
            eased=instance.eased,
            created_at=instance.created_at,
            since=instance.since,
            request=instance.request,
        )

    def _part_view(self, instance: Instance, part: InstancePart) -> PartView:
        seen = self._tending.seen.get((instance.name, instance.generation, part.rank))
        return PartView(
            rank=part.rank,
            node_id=part.node_id,
            gpu_uuids=part.gpu_uuids,
            required_mb=part.required_mb,
            ram_mb=part.ram_mb,
            state=seen.state if seen else None,
            pid=seen.pid if seen else None,
            url=seen.url if seen else None,
        )


def _anew(current: Instance, why: str, **changes: object) -> Instance:
    """What failed before is forgotten; what runs is ended first."""
    state = InstanceState.STOPPING if current.parts else InstanceState.PLANNED
    forgotten = {"failures": 0, "given_up": False, "eased": Eased(), "lost": (), "not_before": None}
    return current.model_copy(update=forgotten | {"state": state, "reason": why} | changes)


def _found(name: str, instance: Instance | None) -> Instance:
    if instance is None:
        raise NotFound(f"there is no instance {name!r}", instance_name=name)
    return instance


def _part(instance: Instance, rank: int) -> InstancePart:
    for part in instance.parts:
        if part.rank == rank:
            return part
    raise NotFound(f"{instance.name} has no process of rank {rank} now", instance_name=instance.name, rank=rank)
