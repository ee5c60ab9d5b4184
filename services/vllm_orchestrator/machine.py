"""What becomes of an instance: from its state, what is wanted and what is seen, to its next state and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from libs.common.contracts.engine_hosting import HostedEngine
from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.vllm_instances import Eased, Instance, InstancePart, InstanceState, RestartPolicy
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
    """What is seen of an instance's processes. A rank without an entry: its agent does not answer. None: its agent
    knows nothing of it. `offline`: nodes that the registry believes to be gone."""

    now: datetime
    engines: Mapping[int, HostedEngine | None]
    offline: frozenset[str] = frozenset()
    start_seconds: float = 1800.0
    chance: float = 0.5


def step(instance: Instance, sight: Sight) -> tuple[Instance, Effect | None]:
    """Repeated with the same sight it decides the same; what it returns unchanged need not be kept."""
    state = instance.state
    if state is InstanceState.STOPPING:
        return _stopping(instance, sight)
    if instance.wanted != "running":
        return _unwanted(instance, sight)
    if state is InstanceState.PLANNED and instance.parts:
        return become(instance, InstanceState.STOPPING, "its start was interrupted", sight.now), None
    if state is InstanceState.PLANNED:
        due = instance.not_before is None or sight.now >= instance.not_before
        return instance, Effect.PLACE if due else None
    if state is InstanceState.RESERVED:
        return instance, Effect.START
    return (_judged(instance, sight), None) if state in RUNNING else (instance, None)


def become(instance: Instance, state: InstanceState, reason: str, now: datetime) -> Instance:
    if (instance.state, instance.reason) == (state, reason):
        return instance
    since = instance.since if instance.state is state else now
    return instance.model_copy(update={"state": state, "reason": reason[:1000], "since": since})


def failed(instance: Instance, failure: Failure, sight: Sight, *, node_id: str | None = None) -> Instance:
    """Its processes are ended first; then it is tried again after a pause, otherwise or elsewhere, or never."""
    failures = 1 if _was_steady(instance, sight.now) else instance.failures + 1
    eased = ease(instance) if failure.remedy is Remedy.EASE else instance.eased
    gives_up = failure.remedy is not Remedy.WAIT and (
        failure.remedy is Remedy.GIVE_UP
        or failures >= MOST_FAILURES
        or eased is None
        or instance.request.restart_policy is RestartPolicy.NEVER
    )
    lost = instance.lost
    if failure.remedy is Remedy.ELSEWHERE and node_id is not None and node_id not in lost:
        lost = (*lost, node_id)
    changed = instance.model_copy(
        update={
            "failures": failures,
            "eased": eased or instance.eased,
            "lost": lost,
            "given_up": gives_up,
            "not_before": sight.now + timedelta(seconds=pause(failures, sight.chance)),
        }
    )
    return become(changed, InstanceState.STOPPING, failure.sentence, sight.now)


def pause(failures: int, chance: float) -> float:
    """Seconds until the next start: 2, 4, 8 … 300, each by up to a half more or less. `chance` is in [0, 1)."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10)
    return min(LONGEST_PAUSE_SECONDS, doubled) * (0.5 + chance)


def ease(instance: Instance) -> Eased | None:
    """Fewer sequences first; then a shorter context, where nobody asked for a length. None: nothing more to give."""
    now, request = instance.eased, instance.request
    least = max(LEAST_SEQUENCES, int(request.concurrency))
    sequences = now.max_num_seqs or request.max_num_seqs or instance.slots
    if request.max_num_seqs is None and sequences > least:
        return now.model_copy(update={"max_num_seqs": max(least, sequences // 4)})
    length = now.max_model_len or instance.context_tokens
    if request.max_model_len is None and length is not None and length > LEAST_LENGTH:
        return now.model_copy(update={"max_model_len": max(LEAST_LENGTH, length // 2)})
    return None


def _unwanted(instance: Instance, sight: Sight) -> tuple[Instance, Effect | None]:
    if instance.parts or instance.state in RUNNING:
        return become(instance, InstanceState.STOPPING, "it is not wanted any more", sight.now), None
    if instance.wanted == "gone":
        return instance, Effect.FORGET
    return become(instance, InstanceState.STOPPED, "", sight.now), None


def _stopping(instance: Instance, sight: Sight) -> tuple[Instance, Effect | None]:
    if not all(_is_over(part, sight) for part in instance.parts):
        return instance, Effect.STOP
    if instance.parts:
        return instance, Effect.RELEASE
    if instance.wanted == "gone":
        return instance, Effect.FORGET
    if instance.wanted == "stopped":
        return become(instance, InstanceState.STOPPED, "", sight.now), None
    after = InstanceState.FAILED if instance.given_up else InstanceState.PLANNED
    return become(instance, after, instance.reason, sight.now), None


def _is_over(part: InstancePart, sight: Sight) -> bool:
    """Memory on a node that is gone is that node's: its ledger ends it with the process."""
    if part.node_id in sight.offline:
        return True
    if part.rank not in sight.engines:
        return False
    engine = sight.engines[part.rank]
    return engine is None or engine.ended_at is not None


def _judged(instance: Instance, sight: Sight) -> Instance:
    for part in instance.parts:
        if part.node_id in sight.offline:
            gone = Failure("node_lost", Remedy.ELSEWHERE, f"node {part.node_id} is offline")
            return failed(instance, gone, sight, node_id=part.node_id)
    for part in instance.parts:
        if part.rank in sight.engines:
            engine = sight.engines[part.rank]
            if engine is None:
                unknown = Failure("agent_forgot", Remedy.LATER, f"the agent of {part.node_id} knows nothing of it")
                return failed(instance, unknown, sight)
            if engine.ended_at is not None:
                return failed(instance, classify(engine), sight, node_id=part.node_id)
    return _alive(instance, sight)


def _alive(instance: Instance, sight: Sight) -> Instance:
    starting = instance.state is InstanceState.STARTING
    silent = [part.node_id for part in instance.parts if part.rank not in sight.engines]
    engines = [engine for engine in sight.engines.values() if engine is not None]
    if not silent and all(engine.state is EngineState.READY for engine in engines):
        return become(instance, InstanceState.READY, "", sight.now)
    if not starting:
        unwell = next((engine.reason for engine in engines if engine.state is not EngineState.READY), "")
        reason = f"the agent of {silent[0]} does not answer" if silent else unwell or "it does not answer"
        return become(instance, InstanceState.DEGRADED, reason, sight.now)
    if (sight.now - instance.since).total_seconds() > sight.start_seconds:
        slow = Failure("too_slow", Remedy.LATER, f"it did not serve within {sight.start_seconds:g} s")
        return failed(instance, slow, sight)
    return instance


def _was_steady(instance: Instance, now: datetime) -> bool:
    return instance.state in (InstanceState.READY, InstanceState.DEGRADED) and now - instance.since >= STEADY
