"""What the detector sees, as Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from libs.common.contracts.node_registry import Inventory
from services.resource_detector.model import Pulse

MIB = 1024 * 1024


class PrometheusObserver:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._told = Counter(
            "mesh_detector_told", "Messages about this machine, by kind.", ("kind",), registry=registry
        )
        self._problems = Gauge(
            "mesh_detector_problems", "What could not be read last time, by source.", ("source",), registry=registry
        )
        self._ram = Gauge("mesh_machine_memory_available_bytes", "RAM that may still be used.", registry=registry)
        self._load = Gauge("mesh_machine_load_ratio", "One-minute load over processors.", registry=registry)
        gpu = ("gpu", "name")
        self._free = Gauge("mesh_gpu_memory_free_bytes", "Free VRAM by GPU.", gpu, registry=registry)
        self._busy = Gauge("mesh_gpu_utilization_ratio", "How busy a GPU is.", gpu, registry=registry)
        self._heat = Gauge("mesh_gpu_temperature_celsius", "How hot a GPU is.", gpu, registry=registry)
        self._healthy = Gauge("mesh_gpu_healthy", "1 while a GPU works.", gpu, registry=registry)

    def inventory(self, inventory: Inventory) -> None:
        self._problems.clear()
        for problem in inventory.problems:
            self._problems.labels(problem.source).inc()

    def pulse(self, pulse: Pulse) -> None:
        _set(self._ram, None if pulse.memory_available_mb is None else pulse.memory_available_mb * MIB)
        _set(self._load, pulse.load_ratio)
        for metric in (self._free, self._busy, self._heat, self._healthy):
            metric.clear()
        for gpu in pulse.gpus:
            labels = (gpu.uuid, gpu.name)
            self._healthy.labels(*labels).set(gpu.healthy)
            _set(self._free.labels(*labels), None if gpu.vram_free_mb is None else gpu.vram_free_mb * MIB)
            _set(self._busy.labels(*labels), gpu.utilization_ratio)
            _set(self._heat.labels(*labels), gpu.temperature_celsius)

    def told(self, kind: str) -> None:
        self._told.labels(kind).inc()


def _set(metric: Gauge, value: float | None) -> None:
    """What is not known is not a number."""
    metric.set(float("nan") if value is None else value)
