"""One division on one set of GPUs: with which options it serves what was asked, or why it does not."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from libs.inference.planner.calibration import Corrections, MeasuredStart, corrections_for, strongest
from libs.inference.planner.devices import Gpu
from libs.inference.planner.goal import Goal
from libs.inference.planner.memory import (
    ALONE_BYTES,
    TOGETHER_BYTES,
    Card,
    Start,
    Verdict,
    budget_of,
    gpu_memory,
    kind_of,
    margin_of,
    range_need,
    safe_blocks,
    start,
)
from libs.inference.planner.options import Asked, Options, options_of
from libs.inference.planner.partitions import fastest_partition, slowest
from libs.inference.planner.rules import Refusal
from libs.inference.planner.seats import Seats
from libs.inference.planner.sentences import option_refusals, too_small
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.speed import expert_share, gpu_bandwidth, step_seconds
from libs.inference.planner.split import Parallel, stage_sizes
from libs.inference.planner.versions import Engine

FEWER_SEQUENCES = (256, 128, 64, 32, 16, 8)
FEWER_TOKENS = 2048
WORTH_NAMING = 0.95
"""A partition of one's own is only named where it makes the slowest stage faster than this part of what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One engine: its division, its GPUs, its options, and how its start goes."""

    parallel: Parallel
    seats: Seats
    options: Options
    start: Start
    lowered: bool
    seconds_per_step: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a division does not serve on some GPUs. The sentence is only made where it is told."""

    code: str
    refusal: Callable[[], Refusal]


def _failed(refusal: Refusal) -> Failure:
    return Failure(code=refusal.code, refusal=lambda: refusal)


class Attempts:
    """Tries divisions of one model for one goal."""

    def __init__(
        self, sizes: Sizes, asked: Asked, engine: Engine, goal: Goal, starts: Sequence[MeasuredStart] = ()
    ) -> None:
        self._sizes = sizes
        self._asked = asked
        self._engine = engine
        self._goal = goal
        self._share = expert_share(sizes.facts)
        self._starts = starts
        self._corrected: dict[tuple[str, bool], Corrections] = {}

    def with_goal(self, goal: Goal) -> "Attempts":
        """The same for another goal."""
        return Attempts(self._sizes, self._asked, self._engine, goal, self._starts)

    def usable(self, gpu: Gpu) -> int:
        """Bytes that an engine could take of a GPU if it were alone on it."""
        return min(gpu.free, budget_of(gpu.total, self._utilization((gpu,), ALONE_BYTES)))

    def on(self, parallel: Parallel, seats: Seats, concurrency: float, *, lower: bool = True) -> Instance | Failure:
        """The first options with which it serves so many requests; of several failures the first.

        Without `lower` only what was asked and the engine's defaults are tried. Raises `Malformed` or `Unsupported`
        where the cache cannot be laid out.
        """
        found = self._with(parallel, seats, self._asked, concurrency, lowered=False)
        if isinstance(found, Instance) or not lower:
            return found
        for asked in self._fewer(seats.gpus, concurrency):
            lowered = self._with(parallel, seats, asked, concurrency, lowered=True)
            if isinstance(lowered, Instance):
                return lowered
        return found

    def _fewer(self, gpus: Sequence[Gpu], concurrency: float) -> Iterator[Asked]:
        """Fewer sequences at once than the engine's default: less is then needed beside the cache."""
        if self._goal.forced or self._asked.max_num_seqs is not None:
            return
        tokens, sequences = self._engine.batch(min(gpu.total for gpu in gpus), ampere=_is_a100(gpus))
        batched = self._asked.max_num_batched_tokens or min(tokens, FEWER_TOKENS)
        for count in FEWER_SEQUENCES:
            if concurrency <= count < min(sequences, batched):
                yield replace(self._asked, max_num_seqs=count, max_num_batched_tokens=batched)

    def _utilization(self, gpus: Sequence[Gpu], beside: int) -> float:
        """As asked, or the default, lowered where other programs use a GPU: what is free is then all there is."""
        if self._asked.gpu_memory_utilization is not None:
            return self._asked.gpu_memory_utilization
        free = min((gpu.free - (beside if gpu.free < gpu.total else 0)) / gpu.total for gpu in gpus)
        return max(0.0, min(self._engine.utilization, math.floor(1000 * free) / 1000))

    def _with(
        self, parallel: Parallel, seats: Seats, asked: Asked, concurrency: float, *, lowered: bool
    ) -> Instance | Failure:
        gpus = seats.gpus
        beside = TOGETHER_BYTES if parallel.gpus > 1 else ALONE_BYTES
        utilization = self._utilization(gpus, beside)
        if utilization <= 0:
            text = "Other programs use all memory of these GPUs."
            return _failed(Refusal(code="no_free_memory", message=text))
        total = min(gpu.total for gpu in gpus)
        filled = replace(asked, gpu_memory_utilization=utilization)
        options = options_of(self._sizes.facts, filled, self._engine, total, ampere=_is_a100(gpus))
        if self._starts:
            options = replace(options, corrections=self._corrections(parallel, gpus))
        for refusal in option_refusals(self._sizes.facts, options):
            return _failed(refusal)
        cards = [_tightest(stage, utilization) for stage in seats.stages]
        divided = self._divided(parallel, seats, options, cards, concurrency)
        found = start(self._sizes, divided, options, cards)
        if found.verdict is not Verdict.FITS or found.safe_concurrency < concurrency:
            code = "concurrency" if found.verdict is Verdict.FITS else found.verdict.value
            return Failure(code=code, refusal=lambda: self._refusal(found, divided, options, concurrency))
        return self._judged(divided, seats, options, found, concurrency, lowered=lowered)

    def _corrections(self, parallel: Parallel, gpus: Sequence[Gpu]) -> Corrections:
        return strongest(self._correction(parallel, name) for name in dict.fromkeys(gpu.name for gpu in gpus))

    def _correction(self, parallel: Parallel, name: str) -> Corrections:
        """Each kind once: there may be thousands of starts, and many sets of GPUs to try."""
        known = (name, parallel.gpus > 1)
        if known not in self._corrected:
            kind = kind_of(self._sizes.facts, parallel, self._engine.version, name)
            self._corrected[known] = corrections_for(kind, self._starts)
        return self._corrected[known]

    def _judged(
        self, parallel: Parallel, seats: Seats, options: Options, found: Start, concurrency: float, *, lowered: bool
    ) -> Instance | Failure:
        requests = max(1, min(options.max_num_seqs, math.ceil(concurrency)))
        seconds = step_seconds(self._sizes.facts, seats, found.needs, requests, self._share)
        rate = requests / seconds
        wanted = self._goal.tokens_per_second
        if wanted is not None and rate * (self._goal.replicas or 1) < wanted:
            text = f"About {rate:.0f} tokens per second for {requests} requests at once, not {wanted:g}."
            return _failed(Refusal(code="tokens_per_second", message=text))
        return Instance(
            parallel=parallel,
            seats=seats,
            options=options,
            start=found,
            lowered=lowered,
            seconds_per_step=seconds,
            tokens_per_second=rate,
        )

    def _divided(
        self, parallel: Parallel, seats: Seats, options: Options, cards: Sequence[Card], concurrency: float
    ) -> Parallel:
        """The division with its layers as vLLM deals them out, or as memory and bandwidth of the stages want it."""
        layers = len(self._sizes.facts.layers)
        if parallel.pipeline == 1 or parallel.pipeline > layers:
            return parallel
        holds = self._holding(parallel, options, cards, concurrency)
        speeds = [min(map(gpu_bandwidth, stage)) for stage in seats.stages]

        def seconds(stage: int, held: range) -> float:
            return self._sizes.weights(parallel, stage, held) / speeds[stage]

        usual = stage_sizes(layers, parallel)
        held = _fits(usual, holds)
        if held and len({(card.total, card.free) for card in cards}) == 1 and len(set(speeds)) == 1:
            return parallel
        best = fastest_partition(layers, parallel.pipeline, holds, seconds)
        if best is None or (held and slowest(best, seconds) > WORTH_NAMING * slowest(usual, seconds)):
            return parallel
        return replace(parallel, partition=best)

    def _holding(
        self, parallel: Parallel, options: Options, cards: Sequence[Card], concurrency: float
    ) -> Callable[[int, range], bool]:
        demand, margin = options.demand(parallel), margin_of(parallel)

        def holds(stage: int, held: range) -> bool:
            need = range_need(self._sizes, parallel, options, stage, held)
            memory = gpu_memory(need, options, cards[stage])
            if memory.weights + memory.non_torch > memory.free:
                return False
            if not need.layout.block_bytes:
                return memory.kv_cache > 0
            wanted = math.ceil(concurrency * need.layout.request_blocks(demand)) + 1
            return safe_blocks(need.layout, memory, margin) >= wanted

        return holds

    def _refusal(self, found: Start, parallel: Parallel, options: Options, concurrency: float) -> Refusal:
        return too_small(found, parallel, options, concurrency, self._longest(found, parallel, options))

    def _longest(self, found: Start, parallel: Parallel, options: Options) -> int:
        """The longest length whose request finds its blocks in what is left."""
        pairs = [(n.layout, m) for n, m in zip(found.needs, found.stages, strict=True) if n.layout.block_bytes]
        if not pairs:
            return 0
        blocks = min(safe_blocks(layout, memory, 0.0) for layout, memory in pairs) - 1
        low, high = 0, options.max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            demand = replace(options, max_model_len=middle).demand(parallel)
            fits = all(layout.request_blocks(demand) <= blocks for layout, _ in pairs)
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _fits(sizes: tuple[int, ...], holds: Callable[[int, range], bool]) -> bool:
    first = 0
    for stage, size in enumerate(sizes):
        if not holds(stage, range(first, first + size)):
            return False
        first += size
    return True


def _tightest(gpus: Sequence[Gpu], utilization: float) -> Card:
    """What binds the ranks of a stage: the smallest budget, and the least that is left free beside a budget."""
    total = min(gpu.total for gpu in gpus)
    budget = budget_of(total, utilization)
    return Card(total=total, free=min(gpu.free - budget_of(gpu.total, utilization) + budget for gpu in gpus))


def _is_a100(gpus: Sequence[Gpu]) -> bool:
    return any("a100" in gpu.name.lower() for gpu in gpus)
