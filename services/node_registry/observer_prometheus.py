"""The registry's work as Prometheus metrics."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from libs.common.contracts.node_registry import NodeState


class PrometheusObserver:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._heard = Counter("mesh_registry_heard", "Messages heard of nodes, by kind.", ("kind",), registry=registry)
        self._changes = Counter(
            "mesh_registry_state_changes", "Changes of a node's state, by the new one.", ("state",), registry=registry
        )
        self._nodes = Gauge("mesh_registry_nodes", "Nodes by state.", ("state",), registry=registry)
        self._mass = Gauge(
            "mesh_registry_mass_silence",
            "1 while more than half of the nodes are silent together; none is declared OFFLINE then.",
            registry=registry,
        )
        self._lost = Counter(
            "mesh_registry_archive_lost", "Events that found no room on their way into the archive.", registry=registry
        )
        self._refused = Counter(
            "mesh_registry_archive_refused",
            "Rows that the archive will never take, put aside, by table.",
            ("table",),
            registry=registry,
        )
        self._elected = Gauge(
            "mesh_registry_elected",
            "1 while this registry, of several, tells changes and writes the archive.",
            registry=registry,
        )

    def heard(self, kind: str) -> None:
        self._heard.labels(kind).inc()

    def changed(self, state: NodeState) -> None:
        self._changes.labels(state.value).inc()

    def seen(self, nodes: Mapping[NodeState, int], *, mass_silence: bool) -> None:
        for state in NodeState:
            self._nodes.labels(state.value).set(nodes.get(state, 0))
        self._mass.set(mass_silence)

    def lost(self) -> None:
        self._lost.inc()

    def put_aside(self, table: str) -> None:
        self._refused.labels(table).inc()

    def elected(self, elected: bool) -> None:
        self._elected.set(elected)
