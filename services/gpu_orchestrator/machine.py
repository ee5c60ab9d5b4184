"""The life of a reservation: held, then committed by a process or expired; released, or ended with its process."""

from dataclasses import dataclass, replace
from datetime import datetime

from libs.common.contracts.gpu_orchestrator import ReservationState
from libs.common.errors import Conflict, Forbidden
from services.gpu_orchestrator.model import RAM, Claim

OPEN = (ReservationState.HELD, ReservationState.COMMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A reservation as it is kept. `deadline` is on the monotonic clock of the machine's boot `machine_boot`.

    `pid_start` tells the process apart from a later one with the same number.
    """

    reservation_id: str
    token: int
    state: ReservationState
    gpu_uuids: tuple[str, ...]
    required_mb: int
    ram_mb: int
    owner: str
    purpose: str
    timeout_seconds: float
    deadline: float
    machine_boot: str
    reserved_at: datetime
    ended_at: datetime | None = None
    ended_reason: str | None = None
    pid: int | None = None
    pid_start: int | None = None
    container_id: str | None = None
    container_seen: bool = False

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    def claims(self) -> tuple[Claim, ...]:
        gpus = [
            Claim(reservation_id=self.reservation_id, device=each, claim_mb=self.required_mb) for each in self.gpu_uuids
        ]
        ram = [Claim(reservation_id=self.reservation_id, device=RAM, claim_mb=self.ram_mb)] if self.ram_mb else []
        return (*gpus, *ram)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who commits a reservation: a process by its number and start, or a container."""

    pid: int | None = None
    pid_start: int | None = None
    container_id: str | None = None
    container_seen: bool = False


def renewed(held: Held, token: int | None, timeout_seconds: float | None, now: float) -> Held:
    """A committed one lives as long as its process: to renew it changes nothing. Raises `Forbidden`, `Conflict`."""
    _of_owner(held, token)
    _still_open(held, now)
    if held.state == ReservationState.COMMITTED:
        return held
    seconds = timeout_seconds if timeout_seconds is not None else held.timeout_seconds
    return replace(held, timeout_seconds=seconds, deadline=now + seconds)


def committed(held: Held, token: int | None, holder: Holder, now: float) -> Held:
    """Again by the same holder changes nothing. Raises `Forbidden`, `Conflict`."""
    _of_owner(held, token)
    _still_open(held, now)
    if held.state == ReservationState.COMMITTED:
        same = (held.pid, held.pid_start, held.container_id) == (holder.pid, holder.pid_start, holder.container_id)
        if same:
            return held
        raise Conflict("It is committed by another process.", pid=held.pid, container_id=held.container_id)
    return replace(
        held,
        state=ReservationState.COMMITTED,
        pid=holder.pid,
        pid_start=holder.pid_start,
        container_id=holder.container_id,
        container_seen=holder.container_seen,
    )


def released(held: Held, token: int | None, at: datetime) -> Held:
    """What has ended already stays as it ended. Raises `Forbidden`."""
    _of_owner(held, token)
    return _ended(held, ReservationState.RELEASED, "released", at) if held.is_open else held


def looked_at(held: Held, *, alive: bool | None, now: float, at: datetime) -> Held:
    """What time and its process make of it. `alive` is None when nobody can tell: then it stays."""
    if held.state == ReservationState.HELD and now >= held.deadline:
        return _ended(held, ReservationState.EXPIRED, f"not committed within {held.timeout_seconds:g} s", at)
    if held.state == ReservationState.COMMITTED and alive is False:
        return _ended(held, ReservationState.ENDED, "its process ended", at)
    return held


def spared(held: Held, until: float) -> Held:
    """Nobody could renew for a while: it does not expire before `until`."""
    is_due = held.state == ReservationState.HELD and held.deadline < until
    return replace(held, deadline=until) if is_due else held


def after_boot(held: Held, machine_boot: str, at: datetime) -> Held:
    """No process and no clock outlives a boot of the machine."""
    if held.is_open and held.machine_boot != machine_boot:
        return _ended(held, ReservationState.ENDED, "the machine was started anew", at)
    return held


def _ended(held: Held, state: ReservationState, reason: str, at: datetime) -> Held:
    return replace(held, state=state, ended_reason=reason, ended_at=at)


def _of_owner(held: Held, token: int | None) -> None:
    if token is not None and token != held.token:
        raise Forbidden("token: is not that of this reservation.", reservation_id=held.reservation_id, field="token")


def _still_open(held: Held, now: float) -> None:
    if not held.is_open:
        raise Conflict(
            f"It is {held.state}: {held.ended_reason}.", reservation_id=held.reservation_id, state=held.state
        )
    if held.state == ReservationState.HELD and now >= held.deadline:
        raise Conflict("It is expired.", reservation_id=held.reservation_id, state=ReservationState.EXPIRED)
