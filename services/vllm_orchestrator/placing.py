"""From a plan, or for llama.cpp from machines alone, to the processes of an instance and what they claim."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from libs.common.contracts.base import node_token
from libs.common.contracts.engine_hosting import EngineProgram
from libs.common.contracts.vllm_instances import DeployRequest, Eased, Instance, InstancePart
from libs.common.contracts.vllm_orchestrator import PlanAnswer
from libs.common.errors import Conflict
from libs.inference.planner.devices import Node

MIB = 2**20
TEST_MODEL_MB = 256
HOST_MB_PER_GPU = 2048
"""RAM that vLLM takes beside each of its GPUs: the worker's own pages, and a part of the front's and the core's."""
LLAMA_TOKENS = 2048
MOST_LLAMA_SLOTS, MOST_SLOTS = 64, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an instance goes, for one generation."""

    parts: tuple[InstancePart, ...]
    strategy: str
    slots: int
    context_tokens: int | None


def eased_request(request: DeployRequest, eased: Eased) -> DeployRequest:
    return request.model_copy(update=eased.model_dump(exclude_none=True))


def candidates(request: DeployRequest, nodes: Iterable[Node], lost: Collection[str]) -> tuple[Node, ...]:
    """The nodes it may go to. Those it failed on come in again when there are no others."""
    allowed = [node for node in nodes if request.node_ids is None or node.node_id in request.node_ids]
    return tuple([node for node in allowed if node.node_id not in lost] or allowed)


def place_of_plan(instance: Instance, answer: PlanAnswer) -> Place:
    """Raises `Conflict` for a plan that does not fit, or needs more than one replica."""
    if not answer.fits:
        raise Conflict(f"it does not fit: {answer.missing}", missing=answer.missing)
    if answer.replicas > 1:
        raise Conflict(f"it takes {answer.replicas} replicas: ask for less, or deploy several under their own names")
    parts = []
    for rank, command in enumerate(answer.commands):
        rows = [row for row in answer.memory_per_gpu if row.node_id == command.node_id]
        parts.append(
            InstancePart(
                rank=rank,
                node_id=command.node_id,
                arguments=command.vllm_args,
                environment=command.environment,
                gpu_uuids=tuple(row.gpu_uuid for row in rows),
                required_mb=math.ceil(max((row.budget_bytes for row in rows), default=0) / MIB),
                ram_mb=len(rows) * HOST_MB_PER_GPU if rows else math.ceil(answer.ram_bytes / MIB),
                reservation_id=reservation_id(instance, command.node_id),
            )
        )
    return Place(
        parts=tuple(parts),
        strategy=answer.strategy or "",
        slots=min(MOST_SLOTS, answer.max_num_seqs or 1),
        context_tokens=answer.max_model_len,
    )


def place_of_llama(instance: Instance, nodes: Sequence[Node]) -> Place:
    """On the machine with most RAM free. Raises `Conflict` where none has enough."""
    request = instance.request
    wanted = request.ram_mb or TEST_MODEL_MB
    best = max(nodes, key=lambda node: (node.ram, node.node_id), default=None)
    if best is None or best.ram < wanted * MIB:
        free = f"{best.node_id} has {best.ram // MIB} MiB free" if best else "there is no machine"
        raise Conflict(f"it does not fit: {wanted} MiB of RAM are wanted, and {free}")
    slots = min(MOST_LLAMA_SLOTS, instance.eased.max_num_seqs or request.max_num_seqs or math.ceil(request.concurrency))
    context = request.max_model_len or LLAMA_TOKENS
    arguments = ["--name", request.model_name or "", "--slots", str(slots), "--context", str(context)]
    arguments += ["--threads", str(max(1, best.threads // 2)) if request.model_path else "1", "--device", "cpu"]
    arguments += ["--model", request.model_path] if request.model_path else []
    part = InstancePart(
        rank=0,
        node_id=best.node_id,
        arguments=tuple(arguments),
        ram_mb=wanted,
        reservation_id=reservation_id(instance, best.node_id),
    )
    return Place(parts=(part,), strategy="CPU", slots=slots, context_tokens=context)


def reservation_id(instance: Instance, node_id: str) -> str:
    return f"{instance.name}/{instance.generation + 1}/{node_token(node_id)}"


def is_llama(request: DeployRequest) -> bool:
    return request.engine is EngineProgram.LLAMA
