"""How many layers each stage of a pipeline gets where its GPUs are not alike."""

from collections.abc import Callable

Holds = Callable[[int, range], bool]
"""Whether a stage can hold these layers. What holds some layers holds fewer of them, too."""

ROUNDS = 20


def partition(layers: int, stages: int, holds: Holds) -> tuple[int, ...] | None:
    """Layers per stage, each stage given as many as it holds; None where not all layers find a place.

    If any division into consecutive stages holds, this one does: to give an early stage more never hurts a later one.
    """
    first, found = 0, []
    for stage in range(stages):
        later = stages - stage - 1
        most = layers - first - later
        count = most if later == 0 else _most(holds, stage, first, most)
        if count < 1 or not holds(stage, range(first, first + count)):
            return None
        found.append(count)
        first += count
    return tuple(found)


def _most(holds: Holds, stage: int, first: int, limit: int) -> int:
    """The most layers up to `limit` that a stage holds from `first` on; zero for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(stage, range(first, first + middle)) else (low, middle - 1)
    return low


def fastest_partition(
    layers: int, stages: int, holds: Holds, seconds: Callable[[int, range], float]
) -> tuple[int, ...] | None:
    """The partition that holds and whose slowest stage takes least time; None where none holds."""
    best = partition(layers, stages, holds)
    if best is None:
        return None
    low, high = 0.0, slowest(best, seconds)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        found = partition(layers, stages, _within(holds, seconds, middle))
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, slowest(found, seconds))
    return best


def _within(holds: Holds, seconds: Callable[[int, range], float], limit: float) -> Holds:
    return lambda stage, held: seconds(stage, held) <= limit and holds(stage, held)


def slowest(sizes: tuple[int, ...], seconds: Callable[[int, range], float]) -> float:
    first, times = 0, []
    for stage, size in enumerate(sizes):
        times.append(seconds(stage, range(first, first + size)))
        first += size
    return max(times)
