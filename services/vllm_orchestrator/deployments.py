"""What is wanted of instances, and what is told of them."""

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.engine_hosting import ENGINE_LOG, ReadEngineLog
from libs.common.contracts.vllm_instances import (
    MOST_REPLICAS,
    ComposeFile,
    DeployRequest,
    Instance,
    InstanceEvents,
    InstanceLog,
    InstancePart,
    InstancesFound,
    InstanceState,
    InstanceView,
    PartView,
    Replica,
    ReplicaView,
)
from libs.common.errors import Conflict, NotFound
from services.vllm_orchestrator.compose import compose_file
from services.vllm_orchestrator.keeping import Keeping, Term
from services.vllm_orchestrator.placing import base_of
from services.vllm_orchestrator.rollout import SERVING, anew, is_outdated
from services.vllm_orchestrator.seeking import Seeking
from services.vllm_orchestrator.tending import Tending

LOG_SECONDS = 5.0


class Deployments:
    """`drain_seconds` holds where a deployment does not say."""

    def __init__(
        self, bus: Bus, clock: Clock, keeping: Keeping, tending: Tending, seeking: Seeking, *, drain_seconds: float
    ) -> None:
        self._drain_seconds = drain_seconds
        self._bus = bus
        self._clock = clock
        self._keeping = keeping
        self._tending = tending
        self._seeking = seeking

    async def deploy(self, request: DeployRequest) -> InstanceView:
        """The same again changes nothing. Raises what `Planning.plan` raises, and `Conflict` where it does not fit."""
        term = self._keeping.term
        known = term.instances.by_name.get(request.instance_name)
        if known is not None and known.request == request and known.wanted != "gone":
            return self._view(known)
        count = await self._seeking.replicas_of(request)
        if count > MOST_REPLICAS:
            raise Conflict(f"it takes {count} replicas, and an instance has at most {MOST_REPLICAS}: ask for less")
        try:
            await self._seeking.check(request, count, known.replicas if known else ())
        except Conflict:
            if request.auto_start:
                raise
        wanted = "running" if request.auto_start else "stopped"

        def decide(current: Instance | None) -> Instance:
            if current is None:
                now, counted = self._clock.now(), term.instances.generations.get(request.instance_name, 0)
                current = Instance(
                    name=request.instance_name, request=request, generation=counted, created_at=now, since=now
                )
            drain = self._drain_seconds if request.drain_seconds is None else request.drain_seconds
            asked = {"request": request, "count": count, "wanted": wanted, "drain_seconds": drain}
            return current.model_copy(update=asked)

        return self._changed(await term.change(request.instance_name, decide))

    async def restart(self, name: str, drain_seconds: float | None) -> InstanceView:
        """What it has in hand may end first. Raises `NotFound`."""

        def decide(current: Instance | None) -> Instance:
            found = anew(_draining(_found(name, current), drain_seconds), "a restart was asked for")
            return found.model_copy(update={"wanted": "running"})

        return self._changed(await self._keeping.term.change(name, decide))

    async def delete(self, name: str, drain_seconds: float | None) -> InstanceView:
        """It gets no more requests, ends those it has in hand and itself, gives its memory back and is forgotten.

        Raises `NotFound`."""

        def decide(current: Instance | None) -> Instance:
            found = _draining(_found(name, current), drain_seconds)
            return found.model_copy(update={"wanted": "gone"})

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

    async def log(self, name: str, number: int | None, rank: int, characters: int) -> InstanceLog:
        """The end of what a process of it wrote, of the last start. Raises `NotFound`, `Unavailable`."""
        replica, part = _part(self._known(name), number, rank)
        asked = ReadEngineLog(
            instance=name, replica=replica.number, generation=replica.generation, rank=rank, characters=characters
        )
        told = await self._bus.request(ENGINE_LOG, asked, node_id=part.node_id, timeout=LOG_SECONDS)
        return InstanceLog(instance_name=name, replica=replica.number, rank=rank, node_id=part.node_id, text=told.text)

    async def compose(self, name: str, number: int | None, rank: int) -> ComposeFile:
        """Raises `NotFound`, `Conflict` for an engine that has no image."""
        instance = self._known(name)
        replica, part = _part(instance, number, rank)
        return compose_file(name, replica.request.engine, part)

    def known(self) -> tuple[Instance, ...] | None:
        """All instances; None while another orchestrator looks after them."""
        return tuple(self._keeping.term.instances.by_name.values()) if self._keeping.leads() else None

    def address(self, instance: Instance, replica: Replica) -> str | None:
        """Where it answers, as its agent told last."""
        if replica.request.url is not None:
            return base_of(replica.request.url)
        keys = ((instance.name, replica.number, replica.generation, part.rank) for part in replica.parts)
        told = (self._tending.seen.get(key) for key in keys)
        return next((each.url for each in told if each and each.url), None)

    def url_of(self, name: str, number: int) -> str | None:
        """Where a replica answers. Raises `NotFound`."""
        instance = self._known(name)
        return self.address(instance, _part(instance, number, 0)[0])

    def count_replicas(self, state: InstanceState) -> float:
        """How many replicas are in it; none while another orchestrator looks after them."""
        known = self._keeping.term.instances.by_name.values() if self._keeping.leads() else ()
        return sum(replica.state is state for instance in known for replica in instance.replicas)

    def count(self, state: InstanceState) -> float:
        """How many instances are in it; none while another orchestrator looks after them."""
        known = self._keeping.term.instances.by_name.values() if self._keeping.leads() else ()
        return sum(instance.state is state for instance in known)

    async def look_after(self, term: Term) -> None:
        await self._tending.round(term)

    def _changed(self, instance: Instance | None) -> InstanceView:
        assert instance is not None
        self._keeping.wake()
        return self._view(instance)

    def _known(self, name: str) -> Instance:
        return _found(name, self._keeping.term.instances.by_name.get(name))

    def _view(self, instance: Instance) -> InstanceView:
        parts = tuple(self._part_view(instance.name, each, part) for each in instance.replicas for part in each.parts)
        return InstanceView(
            instance_name=instance.name,
            model_name=instance.request.model_name or "",
            engine=instance.request.engine,
            state=instance.state,
            wanted=instance.wanted,
            problem=instance.reason,
            generation=instance.generation,
            count=instance.count,
            replicas=tuple(_replica_view(each, instance) for each in instance.replicas),
            parts=parts,
            urls=tuple(
                url
                for each in instance.replicas
                if each.state in SERVING and each.wanted == "running" and (url := self.address(instance, each))
            ),
            created_at=instance.created_at,
            since=instance.since,
            request=instance.request,
        )

    def _part_view(self, name: str, replica: Replica, part: InstancePart) -> PartView:
        seen = self._tending.seen.get((name, replica.number, replica.generation, part.rank))
        return PartView(
            replica=replica.number,
            rank=part.rank,
            node_id=part.node_id,
            gpu_uuids=part.gpu_uuids,
            required_mb=part.required_mb,
            ram_mb=part.ram_mb,
            state=seen.state if seen else None,
            pid=seen.pid if seen else None,
            url=seen.url if seen else None,
        )


def _replica_view(replica: Replica, instance: Instance) -> ReplicaView:
    return ReplicaView(
        number=replica.number,
        state=replica.state,
        outdated=is_outdated(replica, instance),
        problem=replica.reason,
        generation=replica.generation,
        strategy=replica.strategy,
        failures=replica.failures,
        failure=replica.failure,
        not_before=replica.not_before,
        eased=replica.eased,
        since=replica.since,
    )


def _found(name: str, instance: Instance | None) -> Instance:
    if instance is None:
        raise NotFound(f"there is no instance {name!r}", instance_name=name)
    return instance


def _draining(instance: Instance, seconds: float | None) -> Instance:
    """With another time to drain, where one is given."""
    return instance if seconds is None else instance.model_copy(update={"drain_seconds": seconds})


def _part(instance: Instance, number: int | None, rank: int) -> tuple[Replica, InstancePart]:
    for replica in instance.replicas:
        for part in replica.parts:
            if number in (None, replica.number) and part.rank == rank:
                return replica, part
    which = "no replica" if number is None else f"no replica {number}"
    raise NotFound(
        f"{which} of {instance.name} has a process of rank {rank} now",
        instance_name=instance.name,
        replica=number,
        rank=rank,
    )
