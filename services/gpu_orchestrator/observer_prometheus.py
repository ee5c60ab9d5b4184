"""Memory as Prometheus metrics. A value that is not known is NaN."""

from collections.abc import Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge

from libs.common.contracts.gpu_orchestrator import GpuState, PressureLevel
from libs.common.contracts.node_registry import Memory
from services.gpu_orchestrator.model import Entry

MIB = 1024 * 1024
LEVELS = [str(level) for level in PressureLevel]


class PrometheusObserver:
    def __init__(self, registry: CollectorRegistry) -> None:
        gpu = ("gpu", "name")
        self._total = Gauge("mesh_ledger_gpu_total_bytes", "VRAM by GPU.", gpu, registry=registry)
        self._used = Gauge("mesh_ledger_gpu_used_bytes", "Used VRAM by GPU, measured.", gpu, registry=registry)
        self._free = Gauge("mesh_ledger_gpu_free_bytes", "Free VRAM by GPU, measured.", gpu, registry=registry)
        self._users = Gauge("mesh_ledger_gpu_processes", "Processes that use a GPU.", gpu, registry=registry)
        self._ram = Gauge("mesh_ledger_memory_total_bytes", "RAM that may be used.", registry=registry)
        self._available = Gauge("mesh_ledger_memory_available_bytes", "RAM that may still be used.", registry=registry)

        device = ("device",)
        self._claimed = Gauge("mesh_ledger_claimed_bytes", "Claimed, by GPU or RAM.", device, registry=registry)
        self._held = Gauge("mesh_ledger_held_bytes", "Larger of claimed and used, by claim.", device, registry=registry)
        self._foreign = Gauge("mesh_ledger_foreign_bytes", "Used without a claim.", device, registry=registry)
        self._leaked = Gauge("mesh_ledger_leaked_bytes", "Used after the claim ended.", device, registry=registry)
        self._given = Gauge("mesh_ledger_claimable_bytes", "What more may be claimed.", device, registry=registry)
        self._level = Gauge("mesh_ledger_pressure_level", "0 OK, 1 ELEVATED, 2 CRITICAL.", device, registry=registry)
        self._left = Gauge("mesh_ledger_exhausted_in_seconds", "Until nothing is left.", device, registry=registry)
        self._open = Gauge("mesh_ledger_reservations", "Open reservations by state.", ("state",), registry=registry)
        asked = Counter("mesh_ledger_reserve", "Reservations asked for.", ("outcome",), registry=registry)
        # To look a metric up by its labels takes longer than to count; of these there are few.
        self._asked = cache(asked.labels)
        self._reckoned: dict[str, tuple[int, ...]] = {}
        self._pressed: dict[str, tuple[str, float]] = {}
        self._events = Counter("mesh_ledger_events", "What happened in the ledger.", ("kind",), registry=registry)

    def pressed(self, device: str, level: str, seconds: float) -> None:
        if self._pressed.get(device) == (level, seconds):
            return
        self._pressed[device] = (level, seconds)
        self._level.labels(device).set(LEVELS.index(level))
        self._left.labels(device).set(seconds)

    def reckoned(self, ledger: Mapping[str, Entry], reservations: Mapping[str, int]) -> None:
        metrics = (self._claimed, self._held, self._foreign, self._leaked, self._given)
        for gone in self._reckoned.keys() - ledger.keys():
            del self._reckoned[gone]
            for metric in metrics:
                metric.remove(gone)
        for uuid, entry in ledger.items():
            sizes = (entry.claimed_mb, entry.held_mb, entry.foreign_mb, entry.leaked_mb, entry.given_mb)
            if sizes == self._reckoned.get(uuid):
                continue
            self._reckoned[uuid] = sizes
            for metric, mib in zip(metrics, sizes, strict=True):
                metric.labels(uuid).set(mib * MIB)
        for state in ("held", "committed"):
            self._open.labels(state).set(reservations.get(state, 0))

    def asked(self, outcome: str) -> None:
        self._asked(outcome).inc()

    def happened(self, kind: str) -> None:
        self._events.labels(kind).inc()

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
