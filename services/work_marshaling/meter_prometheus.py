"""The queue's work as Prometheus metrics."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.common.contracts.work_marshaling import WorkStatus
from services.work_marshaling.meter import Measures

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_OUTCOMES = (WorkStatus.COMPLETED, WorkStatus.FAILED, WorkStatus.CANCELLED, WorkStatus.DEAD)
_COUNTED = ("admitted", "repeated", "refused", "late", "ignored")


class PrometheusMeter:
    """What happens is counted here; the state is read from `measures` at every scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._append = Histogram(
            "mesh_work_log_append_seconds", "Time to append a log record.", buckets=_FAST, registry=registry
        )
        self._facts = Counter("mesh_work_log_facts", "Facts appended to the log.", registry=registry)
        self._wait = Histogram(
            "mesh_work_assignment_seconds", "From submission to assignment.", buckets=_SLOW, registry=registry
        )
        self._expired = Counter("mesh_work_leases_expired", "Leases that nobody renewed.", registry=registry)
        self._refused = Counter("mesh_work_attempts_refused", "Attempts a node did not take.", registry=registry)
        self._fill = Gauge("mesh_work_stream_fill_ratio", "How full a stream is.", ("stream",), registry=registry)
        self._alarm = Gauge(
            "mesh_work_stream_nearly_full", "1 while a stream is 80 % full or more.", ("stream",), registry=registry
        )
        self._leads = Gauge("mesh_work_leader", "1 while this instance leads.", registry=registry)
        self._registry = registry

    def watch(self, measures: Callable[[], Measures | None]) -> None:
        self._registry.register(_State(measures))

    def appended(self, seconds: float, facts: int) -> None:
        self._append.observe(seconds)
        self._facts.inc(facts)

    def assigned(self, seconds_since_submission: float) -> None:
        self._wait.observe(max(0.0, seconds_since_submission))

    def lease_expired(self) -> None:
        self._expired.inc()

    def refused(self, node_id: str) -> None:
        self._refused.inc()

    def stream_fill(self, stream: str, ratio: float) -> None:
        self._fill.labels(stream).set(ratio)
        self._alarm.labels(stream).set(ratio >= 0.8)

    def led(self, leading: bool) -> None:
        self._leads.set(leading)


class _State(Collector):
    def __init__(self, measures: Callable[[], Measures | None]) -> None:
        self._measures = measures

    def collect(self) -> Iterable[Metric]:
        now = self._measures()
        if now is None:
            return
        items = GaugeMetricFamily("mesh_work_items", "Items at hand by status.", labels=["status"])
        for status, count in now.by_status.items():
            items.add_metric([status], count)
        yield items
        depth = GaugeMetricFamily("mesh_work_queue_depth", "Items that may run now, by priority.", labels=["priority"])
        for priority in range(10):
            depth.add_metric([str(priority)], now.pending_by_priority.get(priority, 0))
        yield depth
        ended = CounterMetricFamily("mesh_work_ended", "Items that ended, by outcome.", labels=["outcome"])
        for outcome in _OUTCOMES:
            ended.add_metric([outcome.value], now.totals.get(outcome.value, 0))
        yield ended
        for name in _COUNTED:
            yield CounterMetricFamily(f"mesh_work_{name}", f"Submissions or outcomes: {name}.", now.totals.get(name, 0))
        yield from (
            GaugeMetricFamily("mesh_work_oldest_pending_seconds", "Age of the oldest.", now.oldest_pending_seconds),
            GaugeMetricFamily("mesh_work_leases", "Attempts that hold a lease.", now.leases),
            GaugeMetricFamily("mesh_work_unwritten_steps", "Decisions on their way to the log.", now.unwritten),
            GaugeMetricFamily("mesh_work_remembered_ids", "Ids of ended items still known.", now.remembered_ids),
            GaugeMetricFamily("mesh_work_epoch", "The epoch of the log.", now.epoch),
        )
