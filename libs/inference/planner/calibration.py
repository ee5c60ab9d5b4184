"""Learns from starts: what was measured corrects what is estimated. Weights and cache are computed and stay so."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

FEW = 3
"""Fewer measurements than this can only raise what is predicted: one lucky start must not cost the next."""

LEAST_FACTOR, MOST_FACTOR = 0.5, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """Factors of the peak of a step and of CUDA graphs, and bytes to add to what is kept beside PyTorch."""

    activation: float = 1.0
    graphs: float = 1.0
    non_torch: int = 0
    starts: int = 0


NONE = Corrections()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What starts have in common that are like each other. `together`: on more than one GPU."""

    architecture: str
    quantisation: str
    version: tuple[int, int]
    gpu: str
    together: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The estimated terms of one GPU, in bytes; None where a log does not tell one."""

    activation: int | None = None
    graphs: int | None = None
    non_torch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStart:
    """A start as it was predicted without corrections, and as the engine's log told it."""

    kind: Kind
    predicted: Terms
    measured: Terms


def corrections_for(kind: Kind, starts: Sequence[MeasuredStart]) -> Corrections:
    """What the starts most like this one say of each term.

    The peak and the graphs are alike for an architecture, its quantisation and an engine; what is kept beside PyTorch
    for a GPU, an engine and whether GPUs work together.
    """
    by_model = _like(starts, lambda each: (each.architecture, each.quantisation, each.version) == _model(kind))
    by_gpu = _like(starts, lambda each: bool(each.gpu) and (each.gpu, each.together) == (kind.gpu, kind.together))
    newest = _like(by_gpu, lambda each: each.version == kind.version) or by_gpu
    used = {id(start) for start in (*by_model, *newest)}
    return Corrections(
        activation=_factor(by_model, lambda terms: terms.activation),
        graphs=_factor(by_model, lambda terms: terms.graphs),
        non_torch=_difference(newest),
        starts=len(used),
    )


def strongest(found: Iterable[Corrections]) -> Corrections:
    """For an engine on unlike GPUs: of each term what raises it most."""
    every = list(found)
    if not every:
        return NONE
    return Corrections(
        activation=max(each.activation for each in every),
        graphs=max(each.graphs for each in every),
        non_torch=max(each.non_torch for each in every),
        starts=max(each.starts for each in every),
    )


def _model(kind: Kind) -> tuple[str, str, tuple[int, int]]:
    return kind.architecture, kind.quantisation, kind.version


def _like(starts: Iterable[MeasuredStart], alike: Callable[[Kind], bool]) -> list[MeasuredStart]:
    return [start for start in starts if alike(start.kind)]


def _factor(starts: Sequence[MeasuredStart], term: Callable[[Terms], int | None]) -> float:
    ratios = []
    for start in starts:
        predicted, measured = term(start.predicted), term(start.measured)
        if predicted and measured is not None and measured >= 0:
            ratios.append(measured / predicted)
    if not ratios:
        return 1.0
    found = median(ratios) if len(ratios) >= FEW else max(1.0, *ratios)
    return min(MOST_FACTOR, max(LEAST_FACTOR, found))


def _difference(starts: Sequence[MeasuredStart]) -> int:
    found = [
        start.measured.non_torch - start.predicted.non_torch
        for start in starts
        if start.measured.non_torch is not None and start.predicted.non_torch is not None
    ]
    if not found:
        return 0
    return int(median(found)) if len(found) >= FEW else max(0, *found)
