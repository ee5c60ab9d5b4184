"""The ledger and its reservations in the words of the contracts."""

from collections.abc import Mapping
from datetime import datetime

from libs.common.contracts.gpu_orchestrator import (
    FitAnswer,
    GpuState,
    GpuStates,
    Leak,
    LedgerEntry,
    LedgerUse,
    Reservation,
    ReservationState,
    Shortfall,
    Trend,
)
from services.gpu_orchestrator.choosing import Choice
from services.gpu_orchestrator.machine import Held
from services.gpu_orchestrator.model import Entry, Ledger, Orphan

MOST_USES, LEAK_IN_USES = 1000, 8
"""In a message, of all devices together: a use may take 250 bytes of it, a leak with its command as much as eight."""


def entry_view(entry: Entry) -> LedgerEntry:
    uses = (
        LedgerUse(reservation_id=name, claim_mb=use.claim_mb, measured_mb=use.measured_mb, over_claim=use.over_claim)
        for name, use in sorted(entry.uses.items())
    )
    return LedgerEntry(
        total_mb=entry.total_mb,
        driver_mb=entry.driver_mb,
        margin_mb=entry.margin_mb,
        claimed_mb=entry.claimed_mb,
        ours_mb=entry.ours_mb,
        held_mb=entry.held_mb,
        foreign_mb=entry.foreign_mb,
        leaked_mb=entry.leaked_mb,
        free_mb=entry.free_mb,
        attributed=entry.attributed,
        problem=entry.problem,
        uses=tuple(uses),
        leaks=tuple(_leak_view(orphan) for orphan in entry.orphans if orphan.leaked),
    )


def _leak_view(orphan: Orphan) -> Leak:
    return Leak(
        pid=orphan.pid,
        command=(orphan.command or "")[:1024],
        reservation_id=orphan.reservation_id,
        used_mb=orphan.used_mb,
        age_seconds=round(orphan.age_seconds, 1),
    )


def state_view(state: GpuState, ledger: Ledger, trend: Trend | None) -> GpuState:
    entry = ledger.get(state.gpu.uuid)
    parts = {part.uuid: entry_view(ledger[part.uuid]) for part in state.gpu.mig_devices if part.uuid in ledger}
    return state.model_copy(update={"ledger": entry_view(entry) if entry else None, "parts": parts, "trend": trend})


def shortened(states: GpuStates) -> GpuStates:
    """As much as a message takes: of each device the largest claims and leaks. REST tells them all."""
    devices = sum(max(1, len(state.parts)) for state in states.gpus)
    most = max(1, MOST_USES // max(1, devices))
    return states.model_copy(update={"gpus": tuple(_shortened_state(state, most) for state in states.gpus)})


def _shortened_state(state: GpuState, most: int) -> GpuState:
    entry = None if state.ledger is None else _shortened_entry(state.ledger, most)
    parts = {uuid: _shortened_entry(part, most) for uuid, part in state.parts.items()}
    return state.model_copy(update={"ledger": entry, "parts": parts})


def _shortened_entry(entry: LedgerEntry, most: int) -> LedgerEntry:
    most_leaks = -(-most // LEAK_IN_USES)
    if len(entry.uses) <= most and len(entry.leaks) <= most_leaks:
        return entry
    uses = sorted(entry.uses, key=lambda use: max(use.claim_mb, use.measured_mb or 0), reverse=True)
    leaks = sorted(entry.leaks, key=lambda leak: leak.used_mb, reverse=True)
    return entry.model_copy(update={"uses": tuple(uses[:most]), "leaks": tuple(leaks[:most_leaks])})


def reservation_view(held: Held, node_id: str, indices: Mapping[str, int], now: float) -> Reservation:
    expires = max(0.0, held.deadline - now) if held.state == ReservationState.HELD else None
    return Reservation(
        reservation_id=held.reservation_id,
        token=held.token,
        node_id=node_id,
        state=held.state,
        gpu_uuids=held.gpu_uuids,
        gpu_indices=tuple(indices[uuid] for uuid in held.gpu_uuids if uuid in indices),
        required_mb=held.required_mb,
        ram_mb=held.ram_mb,
        owner=held.owner,
        purpose=held.purpose,
        timeout_seconds=held.timeout_seconds,
        expires_in_seconds=expires,
        reserved_at=held.reserved_at,
        ended_at=held.ended_at,
        ended_reason=held.ended_reason,
        pid=held.pid,
        container_id=held.container_id,
    )


def fit_view(choice: Choice, node_id: str, indices: Mapping[str, int], at: datetime) -> FitAnswer:
    short = (
        Shortfall(device=each.device, free_mb=each.free_mb, missing_mb=each.missing_mb, reason=each.reason)
        for each in choice.shortfalls
    )
    return FitAnswer(
        fits=choice.fits,
        node_id=node_id,
        at=at,
        gpu_uuids=choice.uuids,
        gpu_indices=tuple(indices[uuid] for uuid in choice.uuids if uuid in indices),
        reason=choice.reason,
        shortfalls=tuple(short),
        would_fit_mb=choice.would_fit_mb,
        would_fit_gpus=choice.would_fit_gpus,
    )
