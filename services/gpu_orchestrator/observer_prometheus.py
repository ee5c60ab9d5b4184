"""Memory as Prometheus metrics. A value that is not known is NaN."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Memory

MIB = 1024 * 1024


class PrometheusObserver:
    def __init__(self, registry: CollectorRegistry) -> None:
        gpu = ("gpu", "name")
        self._total = Gauge("mesh_ledger_gpu_total_bytes", "VRAM by GPU.", gpu, registry=registry)
        self._used = Gauge("mesh_ledger_gpu_used_bytes", "Used VRAM by GPU, measured.", gpu, registry=registry)
        self._free = Gauge("mesh_ledger_gpu_free_bytes", "Free VRAM by GPU, measured.", gpu, registry=registry)
        self._users = Gauge("mesh_ledger_gpu_processes", "Processes that use a GPU.", gpu, registry=registry)
        self._ram = Gauge("mesh_ledger_memory_total_bytes", "RAM that may be used.", registry=registry)
        self._available = Gauge("mesh_ledger_memory_available_bytes", "RAM that may still be used.", registry=registry)

    def measured(self, gpus: Sequence[GpuState], memory: Memory) -> None:
        for metric in (self._total, self._used, self._free, self._users):
            metric.clear()
        for state in gpus:
            labels = (state.gpu.uuid, state.gpu.name)
            self._total.labels(*labels).set(_bytes(state.gpu.vram_total_mb))
            self._used.labels(*labels).set(_bytes(state.gpu.vram_used_mb))
            self._free.labels(*labels).set(_bytes(state.gpu.vram_free_mb))
            self._users.labels(*labels).set(float("nan") if state.processes is None else len(state.processes))
        self._ram.set(_bytes(memory.total_mb))
        self._available.set(_bytes(memory.available_mb))


def _bytes(mib: int | None) -> float:
    return float("nan") if mib is None else float(mib * MIB)
