"""The queue's work as Prometheus metrics."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.common.contracts.work_marshaling import WorkStatus
from libs.common.kit.tallies import Durations, Tally
from services.work_marshaling.meter import Measures, RecordMeasures, Role

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_OUTCOMES = (WorkStatus.COMPLETED, WorkStatus.FAILED, WorkStatus.CANCELLED, WorkStatus.DEAD)
_COUNTED = {
    "admitted": "Items that entered.",
    "repeated": "Submissions of an item that was there already.",
    "refused": "Submissions that did not become an item.",
    "poisonous": "Items that are dead because their nodes died.",
    "late": "Outcomes that came after the item had ended, or the attempt.",
    "ignored": "Outcomes that became dead letters.",
}
_STATE: tuple[tuple[str, str, Callable[[Measures], float]], ...] = (
    (
        "oldest_pending_seconds",
        "Age of the item that has been waiting longest.",
        lambda now: now.oldest_pending_seconds,
    ),
    ("leases", "Attempts that hold a lease.", lambda now: now.leases),
    ("unwritten_steps", "Decisions on their way to the log.", lambda now: now.unwritten),
    ("remembered_ids", "Ids of ended items that are still known.", lambda now: now.remembered_ids),
    ("blacklisted_nodes", "Nodes on the blacklist, as a whole or for a model.", lambda now: now.blacklisted),
    ("epoch", "The epoch of the log.", lambda now: now.epoch),
)


_RECORDS: tuple[tuple[str, str, Callable[[RecordMeasures], float]], ...] = (
    (
        "unarchived_items",
        "Items that ended and are not on their way into the archive yet.",
        lambda now: now.unarchived,
    ),
    ("archive_waiting_rows", "Rows that wait for the archive's database.", lambda now: now.waiting_rows),
    (
        "archive_behind_seconds",
        "Age of the oldest finished work that the archive does not have.",
        lambda now: now.behind_seconds,
    ),
    ("object_bytes", "What large payloads and results take, as the leader saw it last.", lambda now: now.object_bytes),
    ("event_streams", "Streams of events of single items that are open.", lambda now: now.readers),
)


class PrometheusMeter:
    """What happens is counted here; the state is read from `measures` at every scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._append = Durations(
            "mesh_work_log_append_seconds", "Time to append a log record.", _FAST, registry=registry
        )
        self._facts = Tally("mesh_work_log_facts", "Facts appended to the log.", registry=registry)
        self._wait = Durations(
            "mesh_work_assignment_seconds", "From submission to assignment.", _SLOW, registry=registry
        )
        self._expired = Counter("mesh_work_leases_expired", "Leases that nobody renewed.", registry=registry)
        self._refused = Counter("mesh_work_attempts_refused", "Attempts a node did not take.", registry=registry)
        self._fill = Gauge("mesh_work_stream_fill_ratio", "How full a stream is.", ("stream",), registry=registry)
        self._alarm = Gauge(
            "mesh_work_stream_nearly_full", "1 while a stream is 80 % full or more.", ("stream",), registry=registry
        )
        self._leads = Gauge("mesh_work_leader", "1 while this instance leads.", registry=registry)
        self._role = Gauge("mesh_work_role", "1 for the role that this instance has.", ("role",), registry=registry)
        self._registry = registry
        self.became(Role.STARTING)

    def watch(self, measures: Callable[[], Measures | None]) -> None:
        self._registry.register(_State(measures))

    def watch_records(self, measures: Callable[[], RecordMeasures]) -> None:
        self._registry.register(_Records(measures))

    def appended(self, seconds: float, facts: int) -> None:
        self._append.add((), seconds)
        self._facts.counts[()] += facts

    def assigned(self, seconds_since_submission: float) -> None:
        self._wait.add((), max(0.0, seconds_since_submission))

    def lease_expired(self) -> None:
        self._expired.inc()

    def refused(self, node_id: str) -> None:
        self._refused.inc()

    def stream_fill(self, stream: str, ratio: float) -> None:
        self._fill.labels(stream).set(ratio)
        self._alarm.labels(stream).set(ratio >= 0.8)

    def became(self, role: Role) -> None:
        self._leads.set(role is Role.LEADER)
        for each in Role:
            self._role.labels(each.value).set(each is role)


class _Records(Collector):
    def __init__(self, measures: Callable[[], RecordMeasures]) -> None:
        self._measures = measures

    def collect(self) -> Iterable[Metric]:
        now = self._measures()
        for name, told, read in _RECORDS:
            yield GaugeMetricFamily(f"mesh_work_{name}", told, read(now))


class _State(Collector):
    def __init__(self, measures: Callable[[], Measures | None]) -> None:
        self._measures = measures

    def collect(self) -> Iterable[Metric]:
        """Every metric is always named; it has values while this instance leads."""
        now = self._measures()
        yield from _labelled(now)
        for name, told in _COUNTED.items():
            yield CounterMetricFamily(f"mesh_work_{name}", told, now.totals.get(name, 0) if now else None)
        for name, told, read in _STATE:
            yield GaugeMetricFamily(f"mesh_work_{name}", told, read(now) if now else None)


def _labelled(now: Measures | None) -> Iterable[Metric]:
    items = GaugeMetricFamily("mesh_work_items", "Items at hand by status.", labels=["status"])
    depth = GaugeMetricFamily("mesh_work_queue_depth", "Items that may run now, by priority.", labels=["priority"])
    ended = CounterMetricFamily("mesh_work_ended", "Items that ended, by outcome.", labels=["outcome"])
    if now is not None:
        for status in WorkStatus:
            items.add_metric([status.value], now.by_status.get(status.value, 0))
        for priority in range(10):
            depth.add_metric([str(priority)], now.pending_by_priority.get(priority, 0))
        for outcome in _OUTCOMES:
            ended.add_metric([outcome.value], now.totals.get(outcome.value, 0))
    return items, depth, ended
