"""From a plan to the answer."""

from collections.abc import Iterator

from libs.common.contracts.vllm_orchestrator import (
    NearestChange,
    PlanAnswer,
    PlannedCommand,
    PlannedMemory,
    RefusedDivision,
)
from libs.inference.planner.choice import Declined
from libs.inference.planner.command import NodeCommand
from libs.inference.planner.llama import MIB, GgufFacts, LlamaPlan
from libs.inference.planner.memory import GIB
from libs.inference.planner.on_cpu import CpuPlan
from libs.inference.planner.plan import Plan, Replica
from libs.inference.planner.split import stage_sizes
from libs.inference.planner.versions import Engine

MOST_REFUSED = 100


def answer_of(plan: Plan, *, model_name: str | None, layers: int, engine: Engine) -> PlanAnswer:
    told = PlanAnswer(
        fits=plan.fits,
        model_name=model_name,
        strategy=plan.strategy,
        reasons=plan.reasons,
        refused=tuple(_refused(declined) for declined in plan.declined[:MOST_REFUSED]),
        missing=plan.missing,
        changes=tuple(
            NearestChange(option=change.option, value=change.value, message=change.message) for change in plan.changes
        ),
        confidence=plan.confidence,
        vllm_version=".".join(map(str, engine.version)),
    )
    if plan.on_cpu is not None:
        return told.model_copy(update=_of_processor(plan.on_cpu))
    return told.model_copy(update=_of_gpus(plan, layers)) if plan.replicas else told


def answer_of_llama(plan: LlamaPlan, facts: GgufFacts, *, model_name: str | None) -> PlanAnswer:
    """llama.cpp is started by a deployment alone, so there is no command."""
    need, size = plan.need, f"{facts.weight_bytes / GIB:.2f} GiB, mostly {facts.quantisation}"
    changes = (
        ("max_model_len", plan.context_that_fits, "A context that fits."),
        ("max_num_seqs", plan.slots_that_fit, "As many requests at once as fit with this context."),
    )
    told = PlanAnswer(
        fits=not plan.missing,
        model_name=model_name,
        missing=plan.missing,
        reasons=(f"{facts.architecture} of {facts.layers} blocks: {size}.", *facts.doubts),
        confidence="medium" if facts.doubts else "high",
        changes=tuple(
            NearestChange(option=option, value=str(value), message=message)
            for option, value, message in changes
            if plan.missing and value is not None
        ),
    )
    if plan.missing:
        return told
    placed = (
        f"{plan.node_id} serves it on its processor: weights {need.weights // MIB} MiB, cache {need.kv_cache // MIB}, "
        f"a step at most {need.compute // MIB}, the program {need.program // MIB}."
    )
    return told.model_copy(
        update={
            "strategy": "CPU",
            "replicas": 1,
            "max_model_len": plan.context,
            "max_num_seqs": plan.slots,
            "ram_bytes": need.total,
            "kv_cache_tokens": plan.slots * plan.context,
            "max_concurrency": float(plan.slots),
            "reasons": (*told.reasons, placed),
        }
    )


def _of_processor(found: CpuPlan) -> dict[str, object]:
    commands = tuple(_command(each) for each in found.commands)
    return {
        "tensor_parallel_size": found.parallel.tensor,
        "pipeline_parallel_size": found.parallel.pipeline,
        "replicas": 1,
        "max_model_len": found.max_model_len,
        "max_num_seqs": found.max_num_seqs,
        "max_num_batched_tokens": found.max_num_batched_tokens,
        "ram_bytes": found.ram,
        "kv_cache_tokens": found.kv_cache_tokens,
        "max_concurrency": round(found.max_concurrency, 2),
        "vllm_args": commands[0].vllm_args,
        "environment": commands[0].environment,
        "commands": commands,
    }


def _of_gpus(plan: Plan, layers: int) -> dict[str, object]:
    first = plan.replicas[0].instance
    commands = tuple(_commands(plan))
    return {
        "tensor_parallel_size": first.parallel.tensor,
        "pipeline_parallel_size": first.parallel.pipeline,
        "layers_per_stage": stage_sizes(layers, first.parallel),
        "replicas": len(plan.replicas),
        "gpu_memory_utilization": first.options.gpu_memory_utilization,
        "max_model_len": first.options.max_model_len,
        "max_num_seqs": first.options.max_num_seqs,
        "max_num_batched_tokens": first.options.max_num_batched_tokens,
        "memory_per_gpu": tuple(row for place, each in enumerate(plan.replicas) for row in _memory(place, each)),
        "kv_cache_tokens": min(each.instance.start.kv_cache_tokens for each in plan.replicas),
        "max_concurrency": round(min(each.instance.start.max_concurrency for each in plan.replicas), 2),
        "estimated_tokens_per_second": round(first.tokens_per_second, 1),
        "vllm_args": commands[0].vllm_args,
        "environment": commands[0].environment,
        "commands": commands,
    }


def _commands(plan: Plan) -> Iterator[PlannedCommand]:
    for place, replica in enumerate(plan.replicas):
        yield from (_command(each, place) for each in replica.commands)


def _command(found: NodeCommand, replica: int = 0) -> PlannedCommand:
    environment = dict(found.environment)
    return PlannedCommand(
        node_id=found.node_id,
        replica=replica,
        vllm_args=found.arguments,
        environment=environment,
        ray_args=found.ray,
    )


def _memory(place: int, replica: Replica) -> Iterator[PlannedMemory]:
    for found in replica.placements:
        yield PlannedMemory(
            gpu_uuid=found.gpu.uuid,
            node_id=found.gpu.node_id,
            replica=place,
            stage=found.stage,
            rank=found.rank,
            total_bytes=found.memory.total,
            free_bytes=found.memory.free,
            budget_bytes=found.memory.budget,
            weights_bytes=found.memory.weights,
            kv_cache_bytes=found.memory.kv_cache,
            activation_bytes=found.memory.activation,
            cuda_graph_bytes=found.memory.graphs,
            non_torch_bytes=found.memory.non_torch,
        )


def _refused(declined: Declined) -> RefusedDivision:
    return RefusedDivision(
        strategy=declined.strategy,
        tensor_parallel_size=declined.parallel.tensor,
        pipeline_parallel_size=declined.parallel.pipeline,
        code=declined.code,
        message=declined.message,
    )
