"""What every service counts without writing a line. One registry per service, so that many can share a process.

All names begin with `mesh_`; times are seconds, counters end in `_total`. Labels come from code only: subjects from the
contracts, routes as their templates, outcomes from our error codes. What a stranger sends never becomes a label.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.common.bus.bus import Bus
from libs.common.bus.observer import Kind, outcome_of
from libs.common.clock import Clock
from libs.common.errors import MeshError
from libs.common.kit.tallies import Durations, Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """A service's own metrics. Raises nothing: counting never fails what is counted."""

    def __init__(self, service: str, clock: Clock, *, version: str, python: str) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._outcomes = frozenset({"ok", "cancelled"} | set(_codes(MeshError)))
        build = self._gauge("build_info", "What runs here; always 1.", "service", "version", "python")
        build.labels(service, version, python).set(1)
        each, of = ("kind", "subject", "outcome"), ("kind", "subject")
        self._handled = Tally("mesh_bus_handled", "Messages handled.", each, registry=self.registry)
        self._handling = Durations(
            "mesh_bus_handling_seconds", "Time to handle a message.", _SECONDS, of, registry=self.registry
        )
        self._sent = Tally("mesh_bus_sent", "Messages sent, or not.", each, registry=self.registry)
        self._malformed = self._counter("bus_malformed", "Messages that could not be read.", "subject")
        self._dead = self._counter("bus_dead_letters", "Messages kept as dead letters.", "subject", "reason")
        self._requests = self._counter("http_requests", "HTTP requests.", "method", "route", "status")
        self._request = self._histogram("http_request_seconds", "Time to answer a request.", "method", "route")
        # To look a metric up by its labels takes longer than to count; of these there are few.
        self._requests_of, self._request_of = cache(self._requests.labels), cache(self._request.labels)
        self._rounds = self._counter("loop_rounds", "Rounds of a loop.", "loop", "outcome")
        self._round_at = self._gauge("loop_last_success_timestamp_seconds", "When a round last succeeded.", "loop")
        self._rounds_of, self._round_at_of = cache(self._rounds.labels), cache(self._round_at.labels)

    def handling(self, kind: Kind, subject: str) -> AbstractContextManager[None]:
        return _Handling(self, kind, subject)

    def handled(self, kind: Kind, subject: str, outcome: str, seconds: float) -> None:
        self._handling.add((kind, subject), seconds)
        self._handled.counts[kind, subject, self._bounded(outcome)] += 1

    def now(self) -> float:
        return self._clock.monotonic()

    def sent(self, kind: Kind, subject: str, outcome: str) -> None:
        self._sent.counts[kind, subject, self._bounded(outcome)] += 1

    def malformed(self, subject: str) -> None:
        self._malformed.labels(subject).inc()

    def dead_lettered(self, subject: str, reason_code: str) -> None:
        self._dead.labels(subject, self._bounded(reason_code)).inc()

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the route's template, never a path."""
        method = method if method in _METHODS else "other"
        self._requests_of(method, route, str(status)).inc()
        self._request_of(method, route).observe(seconds)

    def loop_round(self, loop: str, outcome: str) -> None:
        self._rounds_of(loop, outcome).inc()
        if outcome == "ok":
            self._round_at_of(loop).set(self._clock.now().timestamp())

    def watch_connection(self, bus: Bus) -> None:
        self.registry.register(_Connection(bus))

    def add_process(self) -> None:
        """Memory, CPU and garbage collection of the process.

        Called for the first service of a process only: seven services in one process have one memory, and a sum over
        their pages must not count it seven times.
        """
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _bounded(self, outcome: str) -> str:
        return outcome if outcome in self._outcomes else "other"

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"mesh_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"mesh_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, *labels: str) -> Histogram:
        return Histogram(f"mesh_{name}", documentation, labels, registry=self.registry, buckets=_SECONDS)


class _Handling(AbstractContextManager[None]):
    """Around every message: a generator would take three times as long."""

    __slots__ = ("_kind", "_metrics", "_started", "_subject")

    def __init__(self, metrics: Metrics, kind: Kind, subject: str) -> None:
        self._metrics = metrics
        self._kind: Kind = kind
        self._subject = subject
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._metrics.now()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        seconds = self._metrics.now() - self._started
        self._metrics.handled(self._kind, self._subject, outcome_of(error), seconds)


class _Connection(Collector):
    """The connection to NATS, asked when the page is read."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "mesh_nats_connections", "Connections made; grows after an outage.", value=self._bus.connections
        )
        yield GaugeMetricFamily(
            "mesh_nats_connected", "1 while the connection works.", value=float(self._bus.problem() is None)
        )
        yield CounterMetricFamily(
            "mesh_nats_streams_made_again",
            "Streams and buckets that the server had lost, and that were made again.",
            value=self._bus.made_again,
        )


def _codes(kind: type[MeshError]) -> Iterator[str]:
    yield kind.code
    for narrower in kind.__subclasses__():
        yield from _codes(narrower)
