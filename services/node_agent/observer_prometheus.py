"""The agent's own metrics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import EngineState

MIB = 1024 * 1024
_TYPES = frozenset({"inference", "chat", "embedding", "function", "container"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is looked at when somebody reads the metrics."""

    running: Callable[[], int]
    slots: Callable[[], int]
    free_slots: Callable[[], int]
    undelivered: Callable[[], int]
    draining: Callable[[], bool]
    engines: Callable[[], tuple[EngineView, ...]]


class PrometheusObserver:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._accepted = Counter("mesh_agent_attempts_accepted", "Attempts taken.", ["work_type"], registry=registry)
        self._refused = Counter("mesh_agent_attempts_refused", "Attempts refused.", registry=registry)
        self._ended = Counter(
            "mesh_agent_attempts_ended", "Attempts that ended, and how.", ["work_type", "outcome"], registry=registry
        )
        self._accepted_of, self._ended_of = cache(self._accepted.labels), cache(self._ended.labels)
        self._tokens = Counter("mesh_agent_tokens", "Tokens as the engines counted them.", ["kind"], registry=registry)
        self._strays = Counter(
            "mesh_agent_containers_removed", "Containers that an earlier run left behind.", registry=registry
        )
        self._delivered = Counter("mesh_agent_outcomes_delivered", "Outcomes that NATS has.", registry=registry)
        self._not_delivered = Counter(
            "mesh_agent_outcome_delivery_failures", "Tries to deliver an outcome that failed.", registry=registry
        )

    def accepted(self, work_type: str) -> None:
        self._accepted_of(_known(work_type)).inc()

    def refused(self) -> None:
        self._refused.inc()

    def ended(self, work_type: str, outcome: str) -> None:
        self._ended_of(_known(work_type), outcome).inc()

    def tokens(self, prompt: int, completion: int) -> None:
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def stray_removed(self) -> None:
        self._strays.inc()

    def delivered(self) -> None:
        self._delivered.inc()

    def delivery_failed(self) -> None:
        self._not_delivered.inc()

    def watch(self, sight: Sight) -> None:
        """Show what is so at the moment of reading."""
        self._registry.register(_Present(sight))


class _Present(Collector):
    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    def collect(self) -> Iterator[GaugeMetricFamily]:
        sight = self._sight
        yield GaugeMetricFamily("mesh_agent_running", "Attempts running now.", value=sight.running())
        yield GaugeMetricFamily("mesh_agent_slots", "Attempts that may run at once.", value=sight.slots())
        yield GaugeMetricFamily("mesh_agent_slots_free", "Attempts it would take now.", value=sight.free_slots())
        yield GaugeMetricFamily(
            "mesh_agent_outcomes_undelivered", "Outcomes that NATS does not have yet.", value=sight.undelivered()
        )
        yield GaugeMetricFamily("mesh_agent_draining", "1: it takes nothing more.", value=float(sight.draining()))
        up = GaugeMetricFamily("mesh_agent_engine_up", "1: the engine is ready.", labels=["engine", "model"])
        memory = GaugeMetricFamily("mesh_agent_engine_memory_bytes", "Resident memory, measured.", labels=["engine"])
        for engine in sight.engines():
            up.add_metric([engine.engine_id, engine.model_name], float(engine.state == EngineState.READY))
            if engine.memory_mb is not None:
                memory.add_metric([engine.engine_id], float(engine.memory_mb * MIB))
        yield up
        yield memory


def _known(work_type: str) -> str:
    """What a stranger sends never becomes a label."""
    return work_type if work_type in _TYPES else "other"
