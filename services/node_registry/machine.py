"""Who is alive. Pure: what was heard and what time it is come as arguments.

    ONLINE --3 missed--> SUSPECT --6 missed--> OFFLINE
       ^--------------------+---- a heartbeat ----+

Silence counts only while we can hear (`Ear`), and when more than half of the nodes fall silent together the fault is
held to be ours or the network's: they turn SUSPECT, and none OFFLINE, for as long as that lasts (`Guard`).
"""

from collections.abc import Mapping
from dataclasses import replace

from libs.common.contracts.node_registry import NodeState
from services.node_registry.model import Ear, Guard, Life, Rules

_BOOTS_REMEMBERED = 8


def listen(ear: Ear, *, now: float, connections: int, hearing: bool, rules: Rules) -> Ear:
    """Look whether we hear. A new connection, an outage or a long absence of mind begins the silence anew."""
    if not hearing:
        since = None
    elif ear.since is None or connections != ear.connections or now - ear.looked_at > rules.attention_seconds:
        since = now
    else:
        since = ear.since
    return Ear(since=since, connections=connections, looked_at=now)


def born(*, boot_id: str, heartbeat_seconds: float, now: float) -> Life:
    return Life(
        state=NodeState.ONLINE,
        reason="it announced itself",
        boot_id=boot_id,
        heard_at=now,
        heartbeat_seconds=heartbeat_seconds,
    )


def heard(life: Life, *, boot_id: str, sequence: int | None, now: float, rules: Rules) -> Life:
    """A sign of life. `sequence` is None for anything but a heartbeat.

    A boot id that was there before, while the present one is still heard, means that two machines use the same node id:
    the one that is known stays.
    """
    if boot_id == life.boot_id:
        reason = life.reason if life.state is NodeState.ONLINE else "its heartbeat is back"
        return replace(
            life,
            state=NodeState.ONLINE,
            reason=reason,
            heard_at=max(now, life.heard_at),
            sequence=max(life.sequence, sequence or 0),
        )
    if boot_id in life.past_boots and missed(life, now) < rules.suspect_beats:
        return replace(life, conflict=f"heard from boot {boot_id} although {life.boot_id} came after it")
    return replace(
        life,
        state=NodeState.ONLINE,
        reason="it restarted",
        boot_id=boot_id,
        heard_at=max(now, life.heard_at),
        sequence=sequence or 0,
        past_boots=(*life.past_boots, life.boot_id)[-_BOOTS_REMEMBERED:],
    )


def missed(life: Life, now: float) -> float:
    """How many heartbeats' time has passed since it was heard."""
    return (now - life.heard_at) / life.heartbeat_seconds


def sweep(
    lives: Mapping[str, Life], *, ear: Ear, guard: Guard, now: float, rules: Rules
) -> tuple[dict[str, Life], Guard]:
    """Time has passed: the lives that change, and the guard. While we do not hear, nothing changes."""
    if ear.since is None:
        return {}, guard
    alive = {node_id: life for node_id, life in lives.items() if life.state is not NodeState.OFFLINE}
    silence = {node_id: _silence(life, max(life.heard_at, ear.since), now) for node_id, life in alive.items()}
    quiet = [node_id for node_id, beats in silence.items() if beats >= rules.suspect_beats]
    guard = _guarded(guard, mass=len(quiet) >= rules.mass_nodes and 2 * len(quiet) > len(alive), now=now)
    changed: dict[str, Life] = {}
    for node_id in quiet:
        life = alive[node_id]
        deadly = _silence(life, max(life.heard_at, ear.since, guard.lifted_at), now)
        after = _judged(life, deadly=not guard.held and deadly >= rules.offline_beats, guard=guard, now=now)
        if after is not life:
            changed[node_id] = after
    return changed, guard


def outlived(lives: Mapping[str, Life], *, now: float, rules: Rules) -> list[str]:
    """Who has been OFFLINE for so long that nobody waits for it."""
    return [
        node_id
        for node_id, life in lives.items()
        if life.state is NodeState.OFFLINE and now - life.heard_at >= rules.forget_seconds
    ]


def _silence(life: Life, since: float, now: float) -> float:
    return (now - since) / life.heartbeat_seconds


def _guarded(guard: Guard, *, mass: bool, now: float) -> Guard:
    if mass:
        return replace(guard, held=True)
    return Guard(held=False, lifted_at=now) if guard.held else guard


def _judged(life: Life, *, deadly: bool, guard: Guard, now: float) -> Life:
    silent = f"silent for {now - life.heard_at:.0f} s"
    if deadly:
        return replace(life, state=NodeState.OFFLINE, reason=silent)
    if life.state is NodeState.SUSPECT:
        return life
    mass = "; more than half of the nodes fell silent together, so the fault may be ours" if guard.held else ""
    return replace(life, state=NodeState.SUSPECT, reason=silent + mass)
