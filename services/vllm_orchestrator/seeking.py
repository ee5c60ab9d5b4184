"""Where replicas go. One after the other, so that what one was given the next does not get."""

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from libs.common.contracts.vllm_instances import DeployRequest, EngineChoice, Instance, InstancePart, Replica
from libs.common.contracts.vllm_orchestrator import Device
from libs.common.errors import Conflict
from libs.inference.planner.devices import Node
from services.vllm_orchestrator.placing import (
    MIB,
    Place,
    candidates,
    claimed,
    contained,
    eased_request,
    given_back,
    is_llama,
    llama_size,
    place_of_llama,
    place_of_plan,
)
from services.vllm_orchestrator.planning import Planning
from services.vllm_orchestrator.rollout import share


class Seeking:
    def __init__(self, planning: Planning) -> None:
        self.turn = asyncio.Lock()
        self._planning = planning

    async def place(self, instance: Instance, replica: Replica, generation: int) -> Place:
        """Where it would go now. Raises `Conflict` where it does not fit, and what `Planning.plan` raises."""
        request = eased_request(replica.request, replica.eased)
        others = _parts(each for each in instance.replicas if each.number != replica.number)
        occupied = {part.node_id for part in others}
        nodes = await self._planning.registered()
        return await self._best(instance.name, generation, request, nodes, lost=replica.lost, occupied=occupied)

    async def replicas_of(self, request: DeployRequest) -> int:
        """As many as were asked for, or as it takes. Raises what `Planning.plan` raises."""
        if request.replicas is not None or request.engine is not EngineChoice.VLLM:
            return request.replicas or 1
        allowed = next(candidates(request, await self._planning.registered(), (), ()))
        return max(1, (await self._planning.plan_on(request, allowed)).replicas)

    async def check(self, request: DeployRequest, count: int, instead_of: Collection[Replica]) -> None:
        """That so many fit beside one another, if those were gone. Raises `Conflict`, what `Planning.plan` raises."""
        if request.engine is EngineChoice.EXTERNAL:
            return
        asked = share(request, count)
        nodes = given_back(await self._planning.registered(), _parts(instead_of))
        occupied: set[str] = set()
        for number in range(count):
            try:
                found = await self._best(request.instance_name, 1, asked, nodes, lost=(), occupied=occupied)
            except Conflict as error:
                raise _for_all(error, number, count) from error
            nodes = claimed(nodes, found.parts)
            occupied |= {part.node_id for part in found.parts}

    def claimed(self, parts: Collection[InstancePart]) -> None:
        """Until the ledgers tell it themselves."""
        self._planning.claimed(parts)

    def given_back(self, parts: Collection[InstancePart]) -> None:
        """Others may be planned there at once."""
        self._planning.given_back(parts)

    async def _best(
        self,
        name: str,
        generation: int,
        request: DeployRequest,
        nodes: Sequence[Node],
        *,
        lost: Collection[str],
        occupied: Collection[str],
    ) -> Place:
        *narrower, widest = candidates(request, nodes, lost, occupied)
        if request.device is None and any(node.gpus for node in widest):
            request = request.model_copy(update={"device": Device.GPU})  # also while others have all of their memory
        for allowed in narrower:
            try:
                return await self._on(name, generation, request, allowed)
            except Conflict:
                continue  # it fits only where it failed before, or beside another replica
        return await self._on(name, generation, request, widest)

    async def _on(self, name: str, generation: int, request: DeployRequest, nodes: Sequence[Node]) -> Place:
        if is_llama(request):
            return place_of_llama(name, generation, await self._sized(request), nodes)
        answer = await self._planning.plan_on(request, nodes)
        place = place_of_plan(name, generation, answer)
        return replace(place, parts=contained(place.parts, request, answer.vllm_version))

    async def _sized(self, request: DeployRequest) -> DeployRequest:
        """With the RAM that the file's header tells, where nobody said how much."""
        if request.model_path is None or request.ram_mb is not None:
            return request
        slots, context = llama_size(request)
        size = await self._planning.ram_of_llama(request.model_path, slots=slots, context=context)
        return request.model_copy(update={"ram_mb": math.ceil(size / MIB)})


def _parts(replicas: Iterable[Replica]) -> list[InstancePart]:
    return [part for replica in replicas for part in replica.parts]


def _for_all(error: Conflict, number: int, count: int) -> Conflict:
    return Conflict(f"{number} of {count} replicas fit: {error.message}", **error.details) if number else error
