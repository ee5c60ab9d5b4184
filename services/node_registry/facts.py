"""What the registry keeps of what a node told. Pure."""

from pydantic import TypeAdapter

from libs.common.contracts.node_registry import EngineState, GpuBeat, NodeAnnounced, NodeHeartbeat, NodeWorkload
from libs.hardware import facts
from services.node_registry.model import Announced, Pulse, Workload

_BEATS = TypeAdapter(tuple[GpuBeat, ...])


def announced(told: NodeAnnounced) -> Announced:
    return Announced(
        boot_id=told.boot_id,
        at=told.at,
        tier_reasons=told.tier_reasons,
        heartbeat_seconds=told.heartbeat_seconds,
        machine=facts.announced(told),
        inventory_json=told.inventory.model_dump_json().encode(),
    )


def rest(told: Announced, before: Pulse | None = None) -> Pulse:
    """Between an announcement and the next heartbeat. What only heartbeats tell is that of the one before."""
    return Pulse(
        machine=told.machine,
        load_ratio=before.load_ratio if before is not None else None,
        beats_json=before.beats_json if before is not None else b"[]",
    )


def pulse(told: Announced, beat: NodeHeartbeat) -> Pulse:
    return Pulse(
        machine=facts.beating(told.machine, beat),
        load_ratio=beat.load_ratio,
        beats_json=_BEATS.dump_json(beat.gpus),
    )


def workload(told: NodeWorkload) -> Workload:
    ready = frozenset(engine.model_name for engine in told.engines if engine.state is EngineState.READY)
    return Workload(engines=told.engines, ready_models=ready, slots=told.slots, free_slots=told.free_slots)
