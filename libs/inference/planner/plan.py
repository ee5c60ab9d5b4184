"""The plan as a document: what to start where, what it will take, why this and not something else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from libs.inference.planner.attempt import Instance
from libs.inference.planner.changes import Change, Question, nearest_changes
from libs.inference.planner.choice import Choice, Declined
from libs.inference.planner.command import Backend, Naming, NodeCommand, node_commands
from libs.inference.planner.devices import Gpu, bandwidth
from libs.inference.planner.drafts import drafting_layers
from libs.inference.planner.facts import Certainty
from libs.inference.planner.goal import Strategy
from libs.inference.planner.memory import GIB, Card, GpuMemory, Verdict, gpu_memory
from libs.inference.planner.on_cpu import CpuPlan, plan_on_cpu
from libs.inference.planner.weights import draft_bytes, weight_bytes


class Confidence(StrEnum):
    """How much of the plan is computed and how much is estimated."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One rank: its GPU, and what becomes of its memory."""

    gpu: Gpu
    stage: int
    rank: int
    memory: GpuMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One engine of the plan."""

    instance: Instance
    placements: tuple[Placement, ...]
    commands: tuple[NodeCommand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`replicas` is empty where nothing fits; then `missing` says what is lacking and `changes` what would help."""

    strategy: Strategy | None
    replicas: tuple[Replica, ...]
    on_cpu: CpuPlan | None
    reasons: tuple[str, ...]
    declined: tuple[Declined, ...]
    missing: str
    changes: tuple[Change, ...]
    confidence: Confidence

    @property
    def fits(self) -> bool:
        return bool(self.replicas) or self.on_cpu is not None


def plan(question: Question, naming: Naming, *, device: str | None = None) -> Plan:
    """What to start. `device` is `gpu` or `cpu`; None takes a CPU only where there is no GPU that could be used.

    Raises `Malformed` or `Unsupported` where the model's cache cannot be laid out.
    """
    gpus = [gpu for node in question.nodes for gpu in node.gpus]
    usable = any(gpu.free > 0 for gpu in gpus)
    if device == "cpu" or (device is None and not usable and not (gpus and question.goal.forced)):
        return _on_cpu(question, naming)
    choice = question.choice
    if not choice.instances:
        return _no_plan(question, choice)
    replicas = tuple(_replica(question, naming, instance) for instance in choice.instances)
    return Plan(
        strategy=choice.strategy,
        replicas=replicas,
        on_cpu=None,
        reasons=(*_reasons(question, choice.instances), *choice.notes),
        declined=choice.declined,
        missing="",
        changes=(),
        confidence=_confidence(question, choice.instances),
    )


def _replica(question: Question, naming: Naming, instance: Instance) -> Replica:
    placements: list[Placement] = []
    for stage, (gpus, need) in enumerate(zip(instance.seats.stages, instance.start.needs, strict=True)):
        for gpu in gpus:
            memory = gpu_memory(need, instance.options, Card(total=gpu.total, free=gpu.free))
            placements.append(Placement(gpu=gpu, stage=stage, rank=len(placements), memory=memory))
    nodes = {node.node_id: node for node in question.nodes}
    commands = node_commands(instance, naming, nodes)
    return Replica(instance=instance, placements=tuple(placements), commands=commands)


def _no_plan(question: Question, choice: Choice) -> Plan:
    missing = choice.declined[-1].message if choice.declined else "There is no GPU that could be used."
    least = min(choice.declined, key=_nearness, default=None)
    return Plan(
        strategy=None,
        replicas=(),
        on_cpu=None,
        reasons=(),
        declined=choice.declined,
        missing=least.message if least else missing,
        changes=nearest_changes(question),
        confidence=_confidence(question, ()),
    )


_NEAR = (
    "concurrency",
    "tokens_per_second",
    Verdict.FEW_STATES.value,
    Verdict.TOO_LONG.value,
    Verdict.NO_CACHE.value,
)


def _nearness(declined: Declined) -> tuple[int, int]:
    """How near a division came: one that starts and serves too little is nearer than one that is refused."""
    place = _NEAR.index(declined.code) if declined.code in _NEAR else len(_NEAR)
    return place, -declined.parallel.gpus


def _on_cpu(question: Question, naming: Naming) -> Plan:
    found, refusal = plan_on_cpu(question, naming)
    changes = () if found else _changes_on_cpu(question, naming)
    return Plan(
        strategy=Strategy.CPU if found else None,
        replicas=(),
        on_cpu=found,
        reasons=found.reasons if found else (),
        declined=(),
        missing=refusal,
        changes=changes,
        confidence=Confidence.LOW if question.facts.certainty is Certainty.LOW else Confidence.MEDIUM,
    )


def _changes_on_cpu(question: Question, naming: Naming) -> tuple[Change, ...]:
    """Over Ray nothing else helps."""
    if naming.backend is not Backend.RAY:
        return nearest_changes(question)
    found, _ = plan_on_cpu(question, replace(naming, backend=Backend.MP))
    without = Change(option="distributed_executor_backend", value="", message="Leave it to vLLM's own processes.")
    return (without,) if found else ()


def _confidence(question: Question, instances: Sequence[Instance]) -> Confidence:
    """Low for a model that is only read as a plain one and on a part of a GPU; medium where estimates weigh more."""
    facts = question.facts
    if facts.certainty is Certainty.LOW:
        return Confidence.LOW
    if any(gpu.is_part for each in instances for gpu in each.seats.gpus):
        return Confidence.LOW
    shared = any(gpu.free < 0.9 * gpu.total for each in instances for gpu in each.seats.gpus)
    estimated = (
        facts.vision is not None
        or facts.draft is not None
        or shared
        or any(each.parallel.pipeline > 1 for each in instances)
    )
    return Confidence.MEDIUM if estimated else Confidence.HIGH


def _reasons(question: Question, instances: Sequence[Instance]) -> tuple[str, ...]:
    first = instances[0]
    return (
        _why_this(first),
        *_why_options(question, first),
        *_why_partition(first),
        f"The cache holds {first.start.kv_cache_tokens} tokens: {first.start.max_concurrency:.1f} requests of "
        f"{first.options.max_model_len} tokens at once.",
        f"About {first.tokens_per_second:.0f} tokens per second at {first.seconds_per_step * 1000:.1f} ms per step, by "
        "memory bandwidth alone.",
        *_why_weights(question, first),
        *_why_drafts(question, first),
        *_why_corrected(first),
        *_why_part(first),
        *(f"{doubt}." for doubt in question.facts.doubts),
    )


def _why_this(instance: Instance) -> str:
    parallel, names = instance.parallel, _names(instance.seats.gpus)
    where = "1 node" if len(instance.seats.node_ids) == 1 else f"{len(instance.seats.node_ids)} nodes"
    if parallel.gpus == 1:
        return f"One {names} is enough."
    way = "NVLink connects the ranks of each stage" if instance.seats.linked else "no NVLink between the ranks"
    linked = f"; {way}" if parallel.tensor > 1 else ""
    return f"{parallel.tensor} x {parallel.pipeline} GPUs ({names}) on {where} are the fewest that serve it{linked}."


def _names(gpus: Sequence[Gpu]) -> str:
    return " and ".join(dict.fromkeys(gpu.name or f"GPU of {gpu.total / GIB:.0f} GiB" for gpu in gpus))


def _why_options(question: Question, instance: Instance) -> list[str]:
    asked, options = question.asked, instance.options
    found = []
    if asked.gpu_memory_utilization is None and options.gpu_memory_utilization < options.engine.utilization:
        found.append(
            f"gpu_memory_utilization is {options.gpu_memory_utilization:g}, below the default of "
            f"{options.engine.utilization:g}: other programs use these GPUs and keep what they have."
        )
    if instance.lowered:
        found.append(
            f"max_num_seqs is {options.max_num_seqs} and max_num_batched_tokens {options.max_num_batched_tokens}: with "
            "the engine's defaults the peak of a step would leave too little for the cache."
        )
    elif asked.max_num_seqs is None:
        found.append(f"max_num_seqs is {options.max_num_seqs}, the engine's default for this GPU.")
    if instance.parallel.expert_parallel:
        found.append("Experts are kept whole (expert parallelism): divided, they would not fit their quantised blocks.")
    return found


def _why_corrected(instance: Instance) -> list[str]:
    count = instance.options.corrections.starts
    return [f"Estimated terms are corrected by {count} measured starts like this one."] if count else []


def _why_weights(question: Question, instance: Instance) -> list[str]:
    adapters = question.facts.adapters
    if adapters is None:
        return []
    bare = weight_bytes(replace(question.facts, adapters=None), instance.parallel)
    taken = weight_bytes(question.facts, instance.parallel) - bare
    return [
        f"{adapters.count} LoRA adapters of rank {adapters.rank} take {taken / GIB:.2f} GiB of the weights' memory."
    ]


def _why_drafts(question: Question, instance: Instance) -> list[str]:
    draft = question.facts.draft
    if draft is None:
        return []
    taken = draft_bytes(question.facts, instance.parallel, instance.parallel.pipeline - 1)
    layers = len(drafting_layers(question.facts))
    where = " of the last stage" if instance.parallel.pipeline > 1 else ""
    return [
        f"{draft.tokens} tokens are guessed ahead ({draft.method}): that takes {taken / GIB:.2f} GiB of the weights' "
        f"memory{where} and {layers} layers of cache. How much sooner it answers is not estimated."
    ]


def _why_part(instance: Instance) -> list[str]:
    """Source: `platforms/interface.py` (`device_id_to_physical_device_id`), which reads a number there."""
    if not any(gpu.is_part for gpu in instance.seats.gpus):
        return []
    text = (
        "This is a MIG device, which is named by its UUID: versions of vLLM that read only numbers there end at once."
    )
    return [text]


def _why_partition(instance: Instance) -> list[str]:
    if not instance.parallel.partition:
        return []
    told: Mapping[str, None] = dict.fromkeys(
        f"{gpus[0].name or gpus[0].uuid} ({gpus[0].total / GIB:.0f} GiB, "
        f"{(bandwidth(gpus[0].name) or 0) / 1e9:.0f} GB/s)"
        for gpus in instance.seats.stages
    )
    sizes = ", ".join(map(str, instance.parallel.partition))
    return [f"Stages of {sizes} layers, by memory and bandwidth of {', '.join(told)}."]
