"""Counters and histograms for what happens with every message.

To count is one step here; what Prometheus is told is put together when it asks. Those of prometheus_client take a lock
and half a dozen calls, because any thread may count with them: these are the event loop's alone.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter. `name` is without `_total`."""

    def __init__(self, name: str, told: str, labels: Labels = (), *, registry: CollectorRegistry) -> None:
        self._name = name
        self._told = told
        self._labelnames = labels
        self.counts: Counter[Labels] = Counter()
        if not labels:
            self.counts[()] = 0
        registry.register(self)

    def describe(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._told, labels=self._labelnames)

    def collect(self) -> Iterable[Metric]:
        (family,) = self.describe()
        for labels, count in tuple(self.counts.items()):
            family.add_metric(labels, count)
        yield family


class Durations(Collector):
    """A histogram of seconds. `bounds`: the upper ends of its buckets, in order."""

    def __init__(
        self, name: str, told: str, bounds: Sequence[float], labels: Labels = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._told = told
        self._labelnames = labels
        self._bounds = tuple(bounds)
        self._ends = [*map(floatToGoString, bounds), "+Inf"]
        self._counts: defaultdict[Labels, list[int]] = defaultdict(lambda: [0] * len(self._ends))
        self._sums: defaultdict[Labels, float] = defaultdict(float)
        if not labels:
            self._counts[()]
        registry.register(self)

    def add(self, labels: Labels, seconds: float) -> None:
        self._counts[labels][bisect_left(self._bounds, seconds)] += 1
        self._sums[labels] += seconds

    def describe(self) -> Iterable[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._told, labels=self._labelnames)

    def collect(self) -> Iterable[Metric]:
        (family,) = self.describe()
        for labels, counts in tuple(self._counts.items()):
            family.add_metric(labels, list(zip(self._ends, accumulate(counts), strict=True)), self._sums[labels])
        yield family
