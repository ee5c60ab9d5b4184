"""The sizes of one model, each computed once: many divisions and many GPUs are compared with the same ones."""

from itertools import accumulate

from libs.inference.planner.activations import activation_bytes
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.kv_cache import Group, KvLayout, held_kinds, layer_kinds, layout_of
from libs.inference.planner.options import Options
from libs.inference.planner.split import Manner, Parallel
from libs.inference.planner.weights import end_bytes, layer_bytes


class Sizes:
    """Remembers what it computed; its answers depend on the model and the arguments alone."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self._sums: dict[tuple[int, bool, Manner], list[int]] = {}
        self._ends: dict[tuple[int, bool, Manner, bool, bool], int] = {}
        self._kinds: dict[tuple[int, Manner, str], list[Group | None]] = {}
        self._layouts: dict[tuple[int, Manner, str, int, int], KvLayout] = {}
        self._peaks: dict[tuple[int, Manner, bool, bool, Options], int] = {}

    def weights(self, parallel: Parallel, stage: int, held: range) -> int:
        """Bytes of weights on each GPU of a stage that holds these layers."""
        key = (parallel.tensor, parallel.expert_parallel, parallel.manner)
        if key not in self._sums:
            self._sums[key] = list(accumulate(layer_bytes(self.facts, parallel), initial=0))
        ends = (*key, stage == 0, stage == parallel.pipeline - 1)
        if ends not in self._ends:
            self._ends[ends] = end_bytes(self.facts, parallel, stage)
        return self._ends[ends] + self._sums[key][held.stop] - self._sums[key][held.start]

    def activation(self, parallel: Parallel, options: Options, stage: int) -> int:
        """The peak beside the weights on each GPU of a stage."""
        key = (parallel.tensor, parallel.manner, stage == 0, stage == parallel.pipeline - 1, options)
        if key not in self._peaks:
            self._peaks[key] = activation_bytes(self.facts, parallel, options, stage)
        return self._peaks[key]

    def layout(self, parallel: Parallel, cache_type: str, held: range) -> KvLayout:
        """The cache of a GPU that holds these layers. Raises `Malformed` or `Unsupported`."""
        key = (parallel.tensor, parallel.manner, cache_type)
        if key not in self._kinds:
            self._kinds[key] = layer_kinds(self.facts, parallel, cache_type=cache_type)
        place = (*key, held.start, held.stop)
        if place not in self._layouts:
            self._layouts[place] = layout_of(held_kinds(self._kinds[key], held, len(self.facts.layers)))
        return self._layouts[place]
