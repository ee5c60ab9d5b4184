"""How a model is divided: tensor parallelism within layers, pipeline parallelism between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.common.errors import Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the ranks of a stage share what could be shared in several ways.

    `context` ranks share the tokens of each request's cache (decode context parallelism). `balanced`: experts move to
    where they are wanted (EPLB), with `redundant` more of them. `whole_encoder`: every rank holds all of the image
    encoder and takes images of its own (`--mm-encoder-tp-mode data`).
    """

    context: int = 1
    balanced: bool = False
    redundant: int = 0
    whole_encoder: bool = False


USUAL = Manner()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """The division of one replica. `partition` names the layers of each stage where they are not vLLM's own.

    `expert_parallel` keeps experts whole and deals them out over the ranks of a stage.
    """

    tensor: int = 1
    pipeline: int = 1
    expert_parallel: bool = False
    partition: tuple[int, ...] = ()
    manner: Manner = USUAL

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline


def stage_sizes(layers: int, parallel: Parallel) -> tuple[int, ...]:
    """How many layers each stage holds.

    Source: `distributed/utils.py` (`get_pp_indices`): what remains goes to the last stages but the very last, which
    has the output layer. Raises `Malformed` for a partition of another length or sum, as `VLLM_PP_LAYER_PARTITION` is.
    """
    if parallel.partition:
        return _named(layers, parallel)
    base, remaining = divmod(layers, parallel.pipeline)
    sizes = [base] * parallel.pipeline
    for place in range(2, remaining + 2):
        sizes[-place] += 1
    return tuple(sizes)


def _named(layers: int, parallel: Parallel) -> tuple[int, ...]:
    if len(parallel.partition) != parallel.pipeline or min(parallel.partition) < 1:
        raise Malformed(
            f"partition must name {parallel.pipeline} stages of at least one layer, not {list(parallel.partition)}",
            field="partition",
        )
    if sum(parallel.partition) != layers:
        raise Malformed(f"partition must name {layers} layers in all, not {sum(parallel.partition)}", field="partition")
    return parallel.partition


def stage_ranges(layers: int, parallel: Parallel) -> Sequence[range]:
    """Which layers each stage holds."""
    first, found = 0, []
    for size in stage_sizes(layers, parallel):
        found.append(range(first, first + size))
        first += size
    return found
