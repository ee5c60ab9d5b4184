"""What becomes of a replica: from its state, what is wanted and what is seen, to its next state and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from libs.common.contracts.engine_hosting import HostedEngine
from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.vllm_instances import (
    Eased,
    EngineChoice,
    InstancePart,
    InstanceState,
    Replica,
    RestartPolicy,
)
from services.vllm_orchestrator.failures import Failure, Remedy, classify

MOST_FAILURES = 6
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0
STEADY = timedelta(seconds=60)
LEAST_SEQUENCES, LEAST_LENGTH = 1, 1024
RUNNING = frozenset({InstanceState.STARTING, InstanceState.READY, InstanceState.DEGRADED})


class Effect(StrEnum):
    PLACE = "place"
    START = "start"
    STOP = "stop"
    RELEASE = "release"
    FORGET = "forget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of a replica's processes. A rank without an entry: its agent does not answer. None: its agent
    knows nothing of it. `offline`: nodes that the registry believes to be gone. `external`: of an engine that somebody
    else runs, why it does not serve; empty: it does; None: it was not asked just now."""

    now: datetime
    engines: Mapping[int, HostedEngine | None]
    offline: frozenset[str] = frozenset()
    external: str | None = None
    start_seconds: float = 1800.0
    wait_seconds: float = 5.0
    chance: float = 0.5


def step(replica: Replica, sight: Sight) -> tuple[Replica, Effect | None]:
    """Repeated with the same sight it decides the same; what it returns unchanged need not be kept."""
    state = replica.state
    if replica.request.engine is EngineChoice.EXTERNAL:
        return _external(replica, sight)
    if state is InstanceState.STOPPING:
        return _stopping(replica, sight)
    if replica.wanted != "running":
        return _unwanted(replica, sight)
    if state is InstanceState.PLANNED and replica.parts:
        return become(replica, InstanceState.STOPPING, "its start was interrupted", sight.now), None
    if state is InstanceState.PLANNED:
        due = replica.not_before is None or sight.now >= replica.not_before
        return replica, Effect.PLACE if due else None
    if state is InstanceState.RESERVED:
        return replica, Effect.START
    return (_judged(replica, sight), None) if state in RUNNING else (replica, None)


def _external(replica: Replica, sight: Sight) -> tuple[Replica, Effect | None]:
    """Nothing is done about one that somebody else runs but to know how it is."""
    if replica.wanted != "running":
        return replica, Effect.FORGET
    if sight.external is None:
        return replica, None
    if not sight.external:
        return become(replica, InstanceState.READY, "", sight.now), None
    served = replica.state in (InstanceState.READY, InstanceState.DEGRADED)
    lacking = InstanceState.DEGRADED if served else InstanceState.STARTING
    return become(replica, lacking, sight.external, sight.now), None


def become(replica: Replica, state: InstanceState, reason: str, now: datetime) -> Replica:
    if (replica.state, replica.reason) == (state, reason):
        return replica
    since = replica.since if replica.state is state else now
    return replica.model_copy(update={"state": state, "reason": reason[:1000], "since": since})


def failed(replica: Replica, failure: Failure, sight: Sight, *, node_id: str | None = None) -> Replica:
    """Its processes are ended first; then it is tried again after a pause, otherwise or elsewhere, or never."""
    waits = failure.remedy in (Remedy.WAIT, Remedy.ROOM)
    failures = replica.failures if waits else 1 if _was_steady(replica, sight.now) else replica.failures + 1
    eased = ease(replica) if failure.remedy is Remedy.EASE else replica.eased
    gives_up = not waits and (
        failure.remedy is Remedy.GIVE_UP
        or failures >= MOST_FAILURES
        or eased is None
        or replica.request.restart_policy is RestartPolicy.NEVER
    )
    seconds = sight.wait_seconds * (1 + sight.chance) if waits else pause(failures, sight.chance)
    lost = replica.lost
    if failure.remedy is Remedy.ELSEWHERE and node_id is not None and node_id not in lost:
        lost = (*lost, node_id)
    changed = replica.model_copy(
        update={
            "crowded": replica.crowded + 1 if failure.remedy is Remedy.ROOM else 0,
            "drain_seconds": 0.0,
            "failures": failures,
            "failure": replica.failure if waits else failure.kind,
            "eased": eased or replica.eased,
            "lost": lost,
            "given_up": gives_up,
            "not_before": sight.now + timedelta(seconds=seconds),
        }
    )
    return become(changed, InstanceState.STOPPING, failure.sentence, sight.now)


def pause(failures: int, chance: float) -> float:
    """Seconds until the next start: 2, 4, 8 … 300, each by up to a half more or less. `chance` is in [0, 1)."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10)
    return min(LONGEST_PAUSE_SECONDS, doubled) * (0.5 + chance)


def ease(replica: Replica) -> Eased | None:
    """Fewer sequences first; then a shorter context, where nobody asked for a length. None: nothing more to give."""
    now, request = replica.eased, replica.request
    least = max(LEAST_SEQUENCES, int(request.concurrency))
    sequences = now.max_num_seqs or request.max_num_seqs or replica.slots
    if request.max_num_seqs is None and sequences > least:
        return now.model_copy(update={"max_num_seqs": max(least, sequences // 4)})
    length = now.max_model_len or replica.context_tokens
    if request.max_model_len is None and length is not None and length > LEAST_LENGTH:
        return now.model_copy(update={"max_model_len": max(LEAST_LENGTH, length // 2)})
    return None


def _unwanted(replica: Replica, sight: Sight) -> tuple[Replica, Effect | None]:
    if replica.parts or replica.state in RUNNING:
        return become(replica, InstanceState.STOPPING, "it is not wanted any more", sight.now), None
    return replica, Effect.FORGET


def _stopping(replica: Replica, sight: Sight) -> tuple[Replica, Effect | None]:
    if not all(_is_over(part, sight) for part in replica.parts):
        return replica, Effect.STOP
    if replica.parts:
        return replica, Effect.RELEASE
    if replica.wanted == "gone":
        return replica, Effect.FORGET
    after = InstanceState.FAILED if replica.given_up else InstanceState.PLANNED
    return become(replica, after, replica.reason, sight.now), None


def _is_over(part: InstancePart, sight: Sight) -> bool:
    """Memory on a node that is gone is that node's: its ledger ends it with the process."""
    if part.node_id in sight.offline:
        return True
    if part.rank not in sight.engines:
        return False
    engine = sight.engines[part.rank]
    return engine is None or engine.ended_at is not None


def _judged(replica: Replica, sight: Sight) -> Replica:
    for part in replica.parts:
        if part.node_id in sight.offline:
            gone = Failure("node_lost", Remedy.ELSEWHERE, f"node {part.node_id} is offline")
            return failed(replica, gone, sight, node_id=part.node_id)
    for part in replica.parts:
        if part.rank in sight.engines:
            engine = sight.engines[part.rank]
            if engine is None:
                unknown = Failure("agent_forgot", Remedy.LATER, f"the agent of {part.node_id} knows nothing of it")
                return failed(replica, unknown, sight)
            if engine.ended_at is not None:
                return failed(replica, classify(engine), sight, node_id=part.node_id)
    return _alive(replica, sight)


def _alive(replica: Replica, sight: Sight) -> Replica:
    starting = replica.state is InstanceState.STARTING
    silent = [part.node_id for part in replica.parts if part.rank not in sight.engines]
    engines = [engine for engine in sight.engines.values() if engine is not None]
    if not silent and all(engine.state is EngineState.READY for engine in engines):
        return become(replica, InstanceState.READY, "", sight.now)
    if not starting:
        unwell = next((engine.reason for engine in engines if engine.state is not EngineState.READY), "")
        reason = f"the agent of {silent[0]} does not answer" if silent else unwell or "it does not answer"
        return become(replica, InstanceState.DEGRADED, reason, sight.now)
    if (sight.now - replica.since).total_seconds() > sight.start_seconds:
        slow = Failure("too_slow", Remedy.LATER, f"it did not serve within {sight.start_seconds:g} s")
        return failed(replica, slow, sight)
    return replica


def _was_steady(replica: Replica, now: datetime) -> bool:
    return replica.state in (InstanceState.READY, InstanceState.DEGRADED) and now - replica.since >= STEADY
