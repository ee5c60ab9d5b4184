"""The ledger: (claims, measurement, previous ledger, now) -> ledger and events.

free = total - driver - margin - for each claim max(claim, its processes' use) - foreign.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.gpu_orchestrator.model import RAM, Claim, Device, Entry, Event, Ledger, Mark, Orphan, Process, Rules, Use

REMAINDER = -1
"""Among foreign processes: what is used and no process is told to use."""


def refresh(
    claims: Iterable[Claim], devices: Sequence[Device], previous: Ledger, now: float, rules: Rules
) -> tuple[dict[str, Entry], tuple[Event, ...]]:
    """Every measured device, and those that are gone but known or claimed: nothing of them is free."""
    by_device: dict[str, dict[str, int]] = {device.uuid: {} for device in devices}
    for claim in claims:
        of_device = by_device.setdefault(claim.device, {})
        of_device[claim.reservation_id] = of_device.get(claim.reservation_id, 0) + claim.claim_mb
    measured = {device.uuid: device for device in devices}
    ledger: dict[str, Entry] = {}
    for uuid in [*by_device, *(uuid for uuid in previous if uuid not in by_device)]:
        device = measured.get(uuid) or _gone(uuid, previous.get(uuid))
        ledger[uuid] = _entry(device, by_device.get(uuid, {}), previous.get(uuid), now, rules)
    return ledger, tuple(_events(ledger, previous))


def reclaimed(entry: Entry, claims: Mapping[str, int]) -> Entry:
    """The same measurement under other claims, by reservation: between two measurements claims come and go."""
    uses = {name: _claimed(entry.uses.get(name), mb) for name, mb in claims.items()}
    # What a claim that is gone was seen to use stays used until the next measurement says otherwise.
    kept = sum(use.measured_mb or 0 for name, use in entry.uses.items() if name not in uses)
    return _balanced(entry, uses=uses, foreign_mb=entry.foreign_mb + kept)


def _claimed(use: Use | None, claim_mb: int) -> Use:
    if use is not None and use.claim_mb == claim_mb:
        return use
    return Use(claim_mb=claim_mb, measured_mb=use.measured_mb if use else None)


def with_growth(entry: Entry, grown_mb: int) -> Entry:
    """What came since the measurement is kept from everybody until it is known whose it is."""
    return entry if grown_mb == entry.grown_mb else _balanced(entry, grown_mb=grown_mb)


def _gone(uuid: str, before: Entry | None) -> Device:
    total = before.total_mb if before else None
    return Device(uuid=uuid, total_mb=total, used_mb=None, problem="it is not seen any more")


def _entry(device: Device, claims: Mapping[str, int], before: Entry | None, now: float, rules: Rules) -> Entry:
    shares = _shares(device, claims, before)
    marks = _marks(shares.foreign, before.marks if before else {}, now, rules.foreign_hold_seconds)
    problem, ill_until = _health(device, before, now, rules)
    entry = Entry(
        uuid=device.uuid,
        total_mb=device.total_mb,
        margin_mb=rules.ram_margin_mb if device.uuid == RAM else rules.margin_mb,
        driver_mb=device.driver_mb,
        used_mb=device.used_mb,
        uses={name: Use(claim_mb=mb, measured_mb=shares.ours.get(name)) for name, mb in claims.items()},
        foreign_mb=sum(mark.most_mb for mark in marks.values()),
        free_mb=None if device.total_mb is None or device.used_mb is None else 0,
        attributed=shares.attributed,
        problem=problem,
        ill_until=ill_until,
        ours_mb=shares.ours_mb,
        marks=marks,
        baseline_mb=shares.baseline,
        owners=_owners(device, claims, before),
        orphans=_orphans(device, claims, before, now, rules),
    )
    return _balanced(entry)


def _balanced(
    entry: Entry, *, uses: Mapping[str, Use] | None = None, foreign_mb: int | None = None, grown_mb: int | None = None
) -> Entry:
    """With what follows from it: what is held and what is free."""
    uses = entry.uses if uses is None else uses
    foreign_mb = entry.foreign_mb if foreign_mb is None else foreign_mb
    grown_mb = entry.grown_mb if grown_mb is None else grown_mb
    held = sum(use.held_mb for use in uses.values())
    if not entry.attributed:
        held = max(held, entry.ours_mb or 0)
    free, short = entry.free_mb, 0
    if free is not None and entry.total_mb is not None:
        left = entry.total_mb - entry.driver_mb - entry.margin_mb - foreign_mb - grown_mb - held
        free, short = max(0, left), max(0, -left)
    return entry._replace(
        uses=uses, foreign_mb=foreign_mb, grown_mb=grown_mb, held_mb=held, free_mb=free, short_mb=short
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Who uses a device: ours by reservation, foreign by process."""

    ours: Mapping[str, int]
    foreign: Mapping[int, int]
    ours_mb: int | None
    baseline: int | None
    attributed: bool


def _shares(device: Device, claims: Mapping[str, int], before: Entry | None) -> _Shares:
    if device.used_mb is None:
        return _unknown(before)
    by_pid = _by_pid(device.processes)
    if by_pid is None:
        return _by_difference(device.used_mb, claims, before)
    ours: dict[str, int] = {}
    foreign: dict[int, int] = {}
    for pid, (process, used) in by_pid.items():
        if any(name in claims for name in process.owners):
            _share(used, [name for name in process.owners if name in claims], claims, ours)
        else:
            foreign[pid] = used
    told = sum(ours.values())
    foreign[REMAINDER] = max(0, device.used_mb - told - sum(foreign.values()))
    return _Shares(ours=ours, foreign=foreign, ours_mb=told, baseline=sum(foreign.values()), attributed=True)


def _share(used: int, owners: Sequence[str], claims: Mapping[str, int], ours: dict[str, int]) -> None:
    """Adds to `ours`. Who has several claims fills one after the other, and goes beyond the last."""
    for name in owners:
        room = max(0, claims[name] - ours.get(name, 0))
        part = used if name == owners[-1] else min(used, room)
        ours[name] = ours.get(name, 0) + part
        used -= part


def _unknown(before: Entry | None) -> _Shares:
    """Nothing was measured: what was foreign is held to be so still."""
    foreign = {pid: mark.most_mb for pid, mark in before.marks.items()} if before else {}
    baseline = before.baseline_mb if before else None
    return _Shares(ours={}, foreign=foreign, ours_mb=None, baseline=baseline, attributed=False)


def _by_pid(processes: Sequence[Process] | None) -> dict[int, tuple[Process, int]] | None:
    """None when the use of a process is not told. A process that computes and draws is told twice."""
    if processes is None:
        return None
    found: dict[int, tuple[Process, int]] = {}
    for process in processes:
        if process.used_mb is None:
            return None
        seen = found.get(process.pid)
        found[process.pid] = (process, max(process.used_mb, seen[1] if seen else 0))
    return found


def _by_difference(used: int, claims: Mapping[str, int], before: Entry | None) -> _Shares:
    """What was used before anybody claimed is foreign; what came since is ours."""
    known = before.baseline_mb if before else None
    if not claims:
        baseline = used
    elif known is not None:
        baseline = min(known, used)
    else:
        baseline = max(0, used - sum(claims.values()))
    return _Shares(ours={}, foreign={REMAINDER: baseline}, ours_mb=used - baseline, baseline=baseline, attributed=False)


def _marks(foreign: Mapping[int, int], before: Mapping[int, Mark], now: float, hold: float) -> dict[int, Mark]:
    """A process that ended gives back at once; one that breathes is held at its most of the last while."""
    return {pid: _mark(used, before.get(pid), now, hold) for pid, used in foreign.items()}


def _mark(used: int, before: Mark | None, now: float, hold: float) -> Mark:
    if before is None or used >= before.most_mb:
        return Mark(most_mb=used, next_mb=used, since=now)
    highest = max(before.next_mb if before.next_mb < before.most_mb else 0, used)
    if now - before.since >= hold:
        return Mark(most_mb=highest, next_mb=used, since=now)
    return Mark(most_mb=before.most_mb, next_mb=highest, since=before.since)


def _health(device: Device, before: Entry | None, now: float, rules: Rules) -> tuple[str | None, float | None]:
    if device.problem is not None:
        return device.problem, now + rules.healthy_seconds
    until = before.ill_until if before else None
    if until is None or now >= until:
        return None, None
    return f"it was unwell and is watched for {until - now:.0f} s more", until


def _owners(device: Device, claims: Mapping[str, int], before: Entry | None) -> dict[int, tuple[str, ...]]:
    """Which processes are, or once were, ours: kept for as long as they are seen."""
    known = dict(before.owners) if before else {}
    if device.processes is None:
        return known if device.used_mb is None else {}
    told = {each.pid: each.owners or known.get(each.pid, ()) for each in device.processes}
    return {pid: names for pid, names in told.items() if names}


def _orphans(
    device: Device, claims: Mapping[str, int], before: Entry | None, now: float, rules: Rules
) -> tuple[Orphan, ...]:
    owners = _owners(device, claims, before)
    since = {orphan.pid: orphan.since for orphan in before.orphans} if before else {}
    by_pid = _by_pid(device.processes) or {}
    left = [pid for pid in sorted(by_pid) if pid in owners and not any(name in claims for name in owners[pid])]
    orphaned = {pid: since.get(pid, now) for pid in left}
    return tuple(
        Orphan(
            pid=pid,
            reservation_id=owners[pid][0],
            since=began,
            age_seconds=now - began,
            used_mb=by_pid[pid][1],
            command=by_pid[pid][0].command,
            leaked=now - began >= rules.leak_grace_seconds,
        )
        for pid, began in orphaned.items()
    )


def _events(ledger: Ledger, previous: Ledger) -> Iterable[Event]:
    """What is new: a state that lasts is told once."""
    for uuid, entry in ledger.items():
        before = previous.get(uuid)
        yield from _over_claims(entry, before)
        yield from _leaks(entry, before)
        if _missing(entry) > 0 and (before is None or _missing(before) == 0):
            message = f"{_missing(entry)} MiB more are claimed and used than there are"
            yield Event(kind="overfull", device=uuid, message=message)
        ill = before is not None and before.problem is not None
        if entry.problem is not None and not ill:
            yield Event(kind="unusable", device=uuid, message=entry.problem)
        elif entry.problem is None and ill:
            yield Event(kind="usable", device=uuid, message="it is well again")


def _missing(entry: Entry) -> int:
    if entry.total_mb is None or entry.free_mb is None:
        return 0
    return max(0, entry.driver_mb + entry.held_mb + entry.foreign_mb - entry.total_mb)


def _over_claims(entry: Entry, before: Entry | None) -> Iterable[Event]:
    for name, use in entry.uses.items():
        was = before.uses.get(name) if before else None
        if use.over_claim and not (was and was.over_claim):
            message = f"{use.measured_mb} MiB are used under a claim of {use.claim_mb} MiB"
            yield Event(kind="over_claim", device=entry.uuid, message=message, reservation_id=name)


def _leaks(entry: Entry, before: Entry | None) -> Iterable[Event]:
    told = {orphan.pid for orphan in before.orphans if orphan.leaked} if before else set()
    for orphan in entry.orphans:
        if orphan.leaked and orphan.pid not in told:
            who = f"process {orphan.pid} ({orphan.command or 'unknown'})"
            message = f"{who} still uses {orphan.used_mb} MiB, {orphan.age_seconds:.0f} s after its claim ended"
            name = orphan.reservation_id
            yield Event(kind="leaked", device=entry.uuid, message=message, reservation_id=name, pid=orphan.pid)
