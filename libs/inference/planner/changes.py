"""What would have to change so that a model fits: each change is planned, and only what then fits is told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from libs.inference.planner.calibration import MeasuredStart
from libs.inference.planner.choice import Choice, choose
from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.goal import Goal
from libs.inference.planner.kv_cache import ELEMENT_BYTES
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Asked
from libs.inference.planner.quantisation import METHODS
from libs.inference.planner.versions import Engine

LEAST_LENGTH, LENGTH_STEP = 512, 256
MORE_GPUS = (1, 2, 4, 8)
MOST_CHANGES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that a choice depends on. `starts` are those whose measurements correct what is estimated."""

    facts: ModelFacts
    asked: Asked
    engine: Engine
    nodes: Sequence[Node]
    goal: Goal
    starts: Sequence[MeasuredStart] = ()

    @property
    def choice(self) -> Choice:
        return choose(self.facts, self.asked, self.engine, self.nodes, self.goal, self.starts)

    @property
    def fits(self) -> bool:
        return bool(self.choice.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`option` is what to change, `value` to what, and `message` says so."""

    option: str
    value: str
    message: str


def nearest_changes(question: Question) -> tuple[Change, ...]:
    """The first three changes that would make it fit, the smallest first."""
    found = []
    for change, changed in _changes(question):
        if changed.fits:
            found.append(change)
        if len(found) == MOST_CHANGES:
            break
    return tuple(found)


def _changes(question: Question) -> Iterator[tuple[Change, Question]]:
    yield from _said_otherwise(question)
    yield from _asked_beside(question)
    yield from _shorter(question)
    yield from _smaller_cache(question)
    yield from _fewer_requests(question)
    yield from _quantised(question)
    yield from _more_gpus(question)


def _said_otherwise(question: Question) -> Iterator[tuple[Change, Question]]:
    """Options that were forced, left to the planner."""
    asked, goal = question.asked, question.goal
    freed = {
        "gpu_memory_utilization": replace(asked, gpu_memory_utilization=None),
        "max_num_seqs": replace(asked, max_num_seqs=None),
        "max_num_batched_tokens": replace(asked, max_num_batched_tokens=None),
    }
    for option, left in freed.items():
        if left != asked:
            text = f"Leave {option} to the planner."
            yield Change(option=option, value="", message=text), replace(question, asked=left)
    if goal.forced:
        text = "Leave tensor_parallel_size and pipeline_parallel_size to the planner."
        change = Change(option="tensor_parallel_size", value="", message=text)
        yield change, replace(question, goal=replace(goal, tensor=None, pipeline=None))


def _asked_beside(question: Question) -> Iterator[tuple[Change, Question]]:
    """Without what a model can do without: drafts, and another manner of sharing than the usual one."""
    facts, goal = question.facts, question.goal
    if facts.draft is not None:
        change = Change(option="speculative_config", value="", message="Guess no tokens ahead.")
        yield change, replace(question, facts=replace(facts, draft=None))
    if goal.manner.context > 1:
        text = "Leave every rank the cache of its own heads."
        change = Change(option="decode_context_parallel_size", value="1", message=text)
        yield change, replace(question, goal=replace(goal, manner=replace(goal.manner, context=1)))
    if goal.manner.balanced or goal.manner.redundant:
        change = Change(
            option="enable_eplb", value="false", message="Leave experts where they are, without more of them."
        )
        manner = replace(goal.manner, balanced=False, redundant=0)
        yield change, replace(question, goal=replace(goal, manner=manner))


def _shorter(question: Question) -> Iterator[tuple[Change, Question]]:
    """The longest context that fits, by bisection."""
    wanted = question.asked.max_model_len or question.facts.max_position

    def at(steps: int) -> Question:
        return replace(question, asked=replace(question.asked, max_model_len=steps * LENGTH_STEP))

    low, high = LEAST_LENGTH // LENGTH_STEP - 1, (wanted - 1) // LENGTH_STEP
    if high <= low or not at(low + 1).fits:
        return
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).fits else (low, middle - 1)
    length = low * LENGTH_STEP
    text = f"Shorten the context to {length} tokens."
    yield Change(option="max_model_len", value=str(length), message=text), at(low)


def _smaller_cache(question: Question) -> Iterator[tuple[Change, Question]]:
    if (ELEMENT_BYTES.get(question.asked.kv_cache_dtype) or question.facts.type_bytes) > 1:
        change = Change(option="kv_cache_dtype", value="fp8", message="Keep the KV cache in FP8.")
        yield change, replace(question, asked=replace(question.asked, kv_cache_dtype="fp8"))


def _fewer_requests(question: Question) -> Iterator[tuple[Change, Question]]:
    count = question.goal.concurrency
    while count > 1:
        count = max(1, count // 2)
        text = f"Serve {count:g} requests of the longest length at once."
        change = Change(option="concurrency", value=f"{count:g}", message=text)
        changed = replace(question, goal=replace(question.goal, concurrency=count))
        yield change, changed
        if changed.fits:
            return


def _quantised(question: Question) -> Iterator[tuple[Change, Question]]:
    if question.facts.quantisation is not None:
        return
    for method, text in (("fp8", "an FP8 variant of the model"), ("awq", "a 4-bit variant of the model")):
        change = Change(option="quantization", value=method, message=f"Take {text}.")
        yield change, replace(question, facts=replace(question.facts, quantisation=METHODS[method]))


def _more_gpus(question: Question) -> Iterator[tuple[Change, Question]]:
    """More GPUs like the largest, in its node."""
    node = max(question.nodes, key=lambda n: max((gpu.total for gpu in n.gpus), default=0), default=None)
    if node is None or not node.gpus:
        return
    like = max(node.gpus, key=lambda gpu: gpu.total)
    for count in MORE_GPUS:
        larger = _with_more(node, like, count)
        nodes = [larger if each is node else each for each in question.nodes]
        name = like.name or f"{like.total / GIB:.0f} GiB GPU"
        text = f"Add {count} more {name} to {node.node_id}."
        changed = replace(question, nodes=nodes)
        yield Change(option="nodes", value=str(count), message=text), changed
        if changed.fits:
            return


def _with_more(node: Node, like: Gpu, count: int) -> Node:
    connected = bool(node.linked)
    more = tuple(replace(like, uuid=f"{like.uuid}+{place}", free=like.total) for place in range(count))
    gpus = (*node.gpus, *more)
    pairs = {frozenset((one.uuid, other.uuid)) for one in more for other in gpus if one is not other}
    return replace(node, gpus=gpus, linked=node.linked | pairs if connected else node.linked)
