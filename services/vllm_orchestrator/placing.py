"""From a plan, or for llama.cpp from machines alone, to the processes of an instance and what they claim."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain

from libs.common.contracts.base import node_token
from libs.common.contracts.vllm_instances import Claim, DeployRequest, Eased, EngineChoice, EngineRuntime, InstancePart
from libs.common.contracts.vllm_orchestrator import PlanAnswer, PlannedMemory
from libs.common.errors import Conflict
from libs.inference.planner.command import MASTER_PORT, RAY_PORT
from libs.inference.planner.devices import Node

MIB = 2**20
IMAGE = "vllm/vllm-openai"
MASTER_PORTS = 1000
TEST_MODEL_MB = 256
HOST_MB_PER_GPU = 2048
"""RAM that vLLM takes beside each of its GPUs: the worker's own pages, and a part of the front's and the core's."""
RAY_MB = 1024
"""RAM that Ray takes on each node: half of it its store, and 0.5 GiB what it runs. Measured of Ray 2.60 on Linux."""
LLAMA_TOKENS = 2048
MOST_LLAMA_SLOTS, MOST_SLOTS = 64, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a replica goes, for one generation."""

    parts: tuple[InstancePart, ...]
    strategy: str
    slots: int
    context_tokens: int | None


def eased_request(request: DeployRequest, eased: Eased) -> DeployRequest:
    return request.model_copy(update=eased.model_dump(exclude_none=True))


def candidates(
    request: DeployRequest, nodes: Iterable[Node], lost: Collection[str], occupied: Collection[str]
) -> Iterator[tuple[Node, ...]]:
    """The nodes it may go to, the best first: where it did not fail and no other replica is; where it did not fail;
    any."""
    allowed = tuple(node for node in nodes if request.node_ids is None or node.node_id in request.node_ids)
    fresh = tuple(node for node in allowed if node.node_id not in lost)
    apart = tuple(node for node in fresh if node.node_id not in occupied)
    narrower = [each for each in dict.fromkeys((apart, fresh)) if each and len(each) < len(allowed)]
    yield from (*narrower, allowed)


def claimed(nodes: Iterable[Node], parts: Iterable[InstancePart]) -> tuple[Node, ...]:
    """What is left of them once these have what they claim."""
    return _with_parts(nodes, parts, -1)


def given_back(nodes: Iterable[Node], parts: Iterable[InstancePart]) -> tuple[Node, ...]:
    """What there would be of them without these."""
    return _with_parts(nodes, parts, +1)


def _with_parts(nodes: Iterable[Node], parts: Iterable[InstancePart], sign: int) -> tuple[Node, ...]:
    memory: dict[str, int] = {}
    ram: dict[str, int] = {}
    for claim in chain.from_iterable(part.claims for part in parts):
        ram[claim.node_id] = ram.get(claim.node_id, 0) + sign * claim.ram_mb * MIB
        for uuid in claim.gpu_uuids:
            memory[uuid] = memory.get(uuid, 0) + sign * claim.required_mb * MIB
    return tuple(
        replace(
            node,
            ram=max(0, node.ram + ram.get(node.node_id, 0)),
            gpus=tuple(
                replace(gpu, free=min(gpu.total, max(0, gpu.free + memory.get(gpu.uuid, 0)))) for gpu in node.gpus
            ),
        )
        for node in nodes
    )


def place_of_plan(name: str, generation: int, answer: PlanAnswer) -> Place:
    """Raises `Conflict` for a plan that does not fit."""
    if not answer.fits:
        raise Conflict(f"it does not fit: {answer.missing}", missing=answer.missing)
    parts = []
    for rank, command in enumerate(answer.commands):
        rows = [row for row in answer.memory_per_gpu if row.node_id == command.node_id]
        port = master_port(name, generation)
        ray_mb = RAY_MB if command.ray_args else 0
        parts.append(
            InstancePart(
                rank=rank,
                node_id=command.node_id,
                arguments=_meeting_at(port, command.vllm_args),
                ray=_meeting_at(port, command.ray_args),
                environment={key: _at(port, value) for key, value in command.environment.items()},
                gpu_uuids=tuple(row.gpu_uuid for row in rows),
                required_mb=math.ceil(rows[0].budget_bytes / MIB) if rows else 0,
                ram_mb=ray_mb + len(rows) * HOST_MB_PER_GPU if rows else math.ceil(answer.ram_bytes / MIB),
                reservation_id=reservation_id(name, generation, command.node_id),
                more=_claimed_apart(rows, reservation_id(name, generation, command.node_id)),
            )
        )
    return Place(
        parts=tuple(parts),
        strategy=answer.strategy or "",
        slots=min(MOST_SLOTS, answer.max_num_seqs or 1),
        context_tokens=answer.max_model_len,
    )


def master_port(name: str, generation: int) -> int:
    """Where the nodes of one start meet: others that have their head on the same machine meet elsewhere. One that finds
    its port taken all the same fails, and gets another with its next generation."""
    return MASTER_PORT + int.from_bytes(sha256(f"{name}/{generation}".encode()).digest()[:4]) % MASTER_PORTS


def _meeting_at(port: int, arguments: Sequence[str]) -> tuple[str, ...]:
    before = ("", *arguments)
    return tuple(
        str(port) if flag in ("--master-port", "--port") else _at(port, each)
        for flag, each in zip(before, arguments, strict=False)
    )


def _at(port: int, word: str) -> str:
    """Of an address of Ray's head that with this port; anything else as it is."""
    host, _, planned = word.rpartition(":")
    return f"{host}:{port}" if host and planned == str(RAY_PORT) else word


def contained(parts: Iterable[InstancePart], request: DeployRequest, version: str) -> tuple[InstancePart, ...]:
    """In containers where that is asked for; `version` is vLLM's that was planned with."""
    if request.runtime is EngineRuntime.PROCESS:
        return tuple(parts)
    image = request.image or f"{IMAGE}:v{version}.0"
    return tuple(part.model_copy(update={"image": image}) for part in parts)


def guarded(parts: Iterable[InstancePart], secret: str) -> tuple[InstancePart, ...]:
    """Whoever reaches a Ray cluster may run anything there: this one obeys those alone who know the secret."""
    guard = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
    return tuple(
        part.model_copy(update={"environment": part.environment | guard}) if part.ray else part for part in parts
    )


def _claimed_apart(rows: Sequence[PlannedMemory], first: str) -> tuple[Claim, ...]:
    """A reservation wants the same of each of its GPUs; unlike GPUs take unlike amounts."""
    by_amount: dict[int, list[str]] = {}
    for row in rows:
        by_amount.setdefault(math.ceil(row.budget_bytes / MIB), []).append(row.gpu_uuid)
    _, *others = [*by_amount.items()] or [(0, [])]
    return tuple(
        Claim(reservation_id=f"{first}/{number}", node_id=rows[0].node_id, gpu_uuids=tuple(uuids), required_mb=amount)
        for number, (amount, uuids) in enumerate(others, start=1)
    )


def _free_ram(best: Node | None) -> str:
    if best is None:
        return "there is no machine"
    return f"{best.node_id} has {best.ram // MIB} MiB free" if best.ram else "no machine told of any that is free"


def place_of_llama(name: str, generation: int, request: DeployRequest, nodes: Sequence[Node]) -> Place:
    """On the machine with most RAM free. Raises `Conflict` where none has enough."""
    wanted = request.ram_mb or TEST_MODEL_MB
    best = max(nodes, key=lambda node: (node.ram, node.node_id), default=None)
    if best is None or best.ram < wanted * MIB:
        raise Conflict(f"it does not fit: {wanted} MiB of RAM are wanted, and {_free_ram(best)}")
    slots, context = llama_size(request)
    arguments = ["--name", request.model_name or "", "--slots", str(slots), "--context", str(context)]
    arguments += ["--threads", str(max(1, best.threads // 2)) if request.model_path else "1", "--device", "cpu"]
    arguments += ["--model", request.model_path] if request.model_path else []
    part = InstancePart(
        rank=0,
        node_id=best.node_id,
        arguments=tuple(arguments),
        ram_mb=wanted,
        reservation_id=reservation_id(name, generation, best.node_id),
    )
    return Place(parts=(part,), strategy="CPU", slots=slots, context_tokens=context)


def llama_size(request: DeployRequest) -> tuple[int, int]:
    """Its slots, and the tokens of each."""
    slots = min(MOST_LLAMA_SLOTS, request.max_num_seqs or math.ceil(request.concurrency))
    return slots, request.max_model_len or LLAMA_TOKENS


def reservation_id(name: str, generation: int, node_id: str) -> str:
    return f"{name}/{generation}/{node_token(node_id)}"


def base_of(url: str) -> str:
    """Where an engine's routes begin: clients of OpenAI's interface name it with `/v1`, others without."""
    return url.rstrip("/").removesuffix("/v1")


def is_llama(request: DeployRequest) -> bool:
    return request.engine is EngineChoice.LLAMA
