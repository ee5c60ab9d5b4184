"""What vLLM's log tells of a start's memory.

The words are those of `gpu_model_runner` (loading, graphs), `gpu_worker` (profiling, cache), `cpu_worker` (cache) and
`core` (version). Every rank writes them: of what is needed the most is taken, of what is left the least.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

GIB = 2**30
_NUMBER = r"(-?\d+(?:\.\d+)?) ?Gi?B"
_WEIGHTS = re.compile(rf"(?:Model loading took|model weights take) {_NUMBER}")
_ACTIVATION = re.compile(rf"PyTorch activation peak memory takes {_NUMBER}")
_NON_TORCH = re.compile(rf"non_torch_memory takes {_NUMBER}")
_ESTIMATED_GRAPHS = re.compile(rf"Estimated CUDA graph memory: {_NUMBER}")
_GRAPHS = re.compile(rf"Graph capturing finished in [\d.]+ secs?, took {_NUMBER}")
_AVAILABLE = re.compile(rf"(?:Available KV cache memory:|memory reserved for KV Cache is) {_NUMBER}")
_SET_ON_CPU = re.compile(r"(?:Explicitly|Auto) set \((\d+(?:\.\d+)?)/[\d.]+\) GiB for KV cache")
_VERSION = re.compile(r"LLM engine \(v(\d+\.\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStart:
    """Bytes on one GPU, or of one rank on a processor; None where the log does not tell."""

    weights: int | None = None
    activation: int | None = None
    non_torch: int | None = None
    graphs: int | None = None
    available: int | None = None
    version: str | None = None


def logged_start(text: str) -> LoggedStart:
    version = _VERSION.search(text)
    graphs = _bytes(_ESTIMATED_GRAPHS, text, max)
    available = _bytes(_AVAILABLE, text, min)
    return LoggedStart(
        weights=_bytes(_WEIGHTS, text, max),
        activation=_bytes(_ACTIVATION, text, max),
        non_torch=_bytes(_NON_TORCH, text, max),
        graphs=_bytes(_GRAPHS, text, max) if graphs is None else graphs,
        available=_bytes(_SET_ON_CPU, text, min) if available is None else available,
        version=version[1] if version else None,
    )


def _bytes(pattern: re.Pattern[str], text: str, of_ranks: Callable[[Iterable[float]], float]) -> int | None:
    found = [float(number) for number in pattern.findall(text)]
    return int(of_ranks(found) * GIB) if found else None
