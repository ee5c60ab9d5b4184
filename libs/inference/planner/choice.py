"""Which division of equal GPUs to start with: the first, in order of preference, that vLLM accepts and that fits."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.memory import Start, Verdict, start
from libs.inference.planner.options import Asked, options_of
from libs.inference.planner.rules import Refusal, refusals
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import Engine


class Strategy(StrEnum):
    """How a model is spread over GPUs."""

    SINGLE_GPU = "SINGLE_GPU"
    TENSOR_PARALLEL = "TENSOR_PARALLEL"
    PIPELINE_PARALLEL = "PIPELINE_PARALLEL"
    HYBRID_TP_PP = "HYBRID_TP_PP"


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualGpus:
    """`nodes` machines with `per_node` free GPUs of `total_bytes` each. `linked` ones have NVLink between them all."""

    nodes: int
    per_node: int
    total_bytes: int
    linked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A division that was looked at and not taken, and why."""

    strategy: Strategy
    parallel: Parallel
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to start; None where nothing fits. `declined` are the divisions that were looked at before, in order."""

    parallel: Parallel | None
    start: Start | None
    declined: tuple[Declined, ...]

    @property
    def strategy(self) -> Strategy | None:
        return None if self.parallel is None else strategy_of(self.parallel)


def strategy_of(parallel: Parallel) -> Strategy:
    if parallel.gpus == 1:
        return Strategy.SINGLE_GPU
    if parallel.pipeline == 1:
        return Strategy.TENSOR_PARALLEL
    return Strategy.PIPELINE_PARALLEL if parallel.tensor == 1 else Strategy.HYBRID_TP_PP


def divisions(gpus: EqualGpus) -> Iterator[Parallel]:
    """Every division that these GPUs can hold, the preferred first.

    One GPU first. Where GPUs are linked, tensor parallelism within a node, then that with as few stages as it takes,
    and a pipeline of single GPUs last. Where they are not, fewer GPUs before more, and of as many up to two ranks per
    stage: a single stream is answered sooner with two, and a pipeline asks less of slow links than more. Ranks of a
    stage are never on several nodes. Source: vLLM's `docs/serving/parallelism_scaling.md`.
    """
    found = [
        Parallel(tensor=tensor, pipeline=stages)
        for tensor in range(1, gpus.per_node + 1)
        for stages in range(1, (gpus.per_node // tensor) * gpus.nodes + 1)
    ]
    yield from sorted(found, key=_preference_linked if gpus.linked else _preference_apart)


TIERS = (Strategy.SINGLE_GPU, Strategy.TENSOR_PARALLEL, Strategy.HYBRID_TP_PP, Strategy.PIPELINE_PARALLEL)


def _preference_linked(parallel: Parallel) -> tuple[int, int, int]:
    return TIERS.index(strategy_of(parallel)), parallel.pipeline, parallel.gpus


def _preference_apart(parallel: Parallel) -> tuple[int, int, int]:
    return parallel.gpus, max(0, parallel.tensor - 2), parallel.pipeline


def choose(facts: ModelFacts, asked: Asked, engine: Engine, gpus: EqualGpus, *, concurrency: float = 1.0) -> Choice:
    """The first division that vLLM accepts and that holds `concurrency` requests of the longest length.

    Raises `Malformed` or `Unsupported` where the cache cannot be laid out.
    """
    options = options_of(facts, asked, engine, gpus.total_bytes)
    declined: list[Declined] = []
    for parallel in divisions(gpus):
        refused = refusals(facts, parallel)
        if refused:
            declined.append(_declined(parallel, refused[0]))
            continue
        found = start(facts, parallel, options, gpus.total_bytes)
        if found.verdict is Verdict.FITS and found.max_concurrency >= concurrency:
            return Choice(parallel=parallel, start=found, declined=tuple(declined))
        declined.append(_declined(parallel, _too_small(found, concurrency)))
    return Choice(parallel=None, start=None, declined=tuple(declined))


def _too_small(found: Start, concurrency: float) -> Refusal:
    if found.verdict is not Verdict.FITS:
        return Refusal(code=found.verdict.value, message=f"{found.verdict.value.replace('_', ' ')}.".capitalize())
    message = f"The cache holds {found.max_concurrency:.2f} requests of the longest length, not {concurrency:g}."
    return Refusal(code="concurrency", message=message)


def _declined(parallel: Parallel, refusal: Refusal) -> Declined:
    return Declined(strategy=strategy_of(parallel), parallel=parallel, code=refusal.code, message=refusal.message)
