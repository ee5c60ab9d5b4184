"""From what is wanted of an instance and how its replicas are, to which replicas are added and which end.

A changed deployment is rolled out one replica after the other. The new one comes first, and an old one ends when it
serves. Where there is no room for it beside the old ones, one of them ends before. A new one that is given up changes
nothing more.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from libs.common.contracts.vllm_instances import DeployRequest, Eased, Instance, InstanceEvent, InstanceState, Replica

SERVING = frozenset({InstanceState.READY, InstanceState.DEGRADED})
TRIED = 2
"""So often a new one finds no room before an old one ends for it: what is free is told every few seconds only."""

_NEAREST = (
    InstanceState.DEGRADED,
    InstanceState.STARTING,
    InstanceState.RESERVED,
    InstanceState.STOPPING,
    InstanceState.PLANNED,
    InstanceState.FAILED,
)
_BESIDE_THE_ENGINE = frozenset({"replicas", "auto_start", "restart_policy", "drain_seconds"})
"""What of a deployment may change without another engine."""


def share(request: DeployRequest, count: int) -> DeployRequest:
    """What one of so many replicas is asked for."""
    each = max(1.0, request.concurrency / count)
    return request.model_copy(update={"replicas": 1, "concurrency": each, "auto_start": True})


def is_outdated(replica: Replica, instance: Instance) -> bool:
    wanted = share(instance.request, instance.count)
    return any(
        getattr(replica.request, field) != getattr(wanted, field)
        for field in DeployRequest.model_fields
        if field not in _BESIDE_THE_ENGINE
    )


def proceed(instance: Instance, now: datetime) -> Instance | None:
    """What is to be there next; None: the instance is no more. One step: it is repeated."""
    instance = _hurried(instance)
    if instance.wanted != "running":
        if not instance.replicas and instance.wanted == "gone":
            return None
        ended = retired(instance, instance.replicas, "it is not wanted any more", now)
        return summed_up(ended, now)
    return summed_up(_rolled(_in_step(instance), now), now)


def retired(instance: Instance, replicas: Iterable[Replica], why: str, now: datetime) -> Instance:
    """These are to end, and not to come back."""
    numbers = {replica.number for replica in replicas if replica.wanted == "running"}
    there = instance.replicas
    return _with(instance, [_ended(each, instance, why, now) if each.number in numbers else each for each in there])


def anew(instance: Instance, why: str) -> Instance:
    """Every replica ends and starts again; what failed before is forgotten."""
    return _with(
        instance, [_again(each, instance, why) if each.wanted == "running" else each for each in instance.replicas]
    )


def without(instance: Instance, replica: Replica) -> Instance:
    """It has ended and given back what it had: whoever waits for room may try at once."""
    left = [each for each in instance.replicas if each.number != replica.number]
    if replica.generation:
        left = [each.model_copy(update={"crowded": 0, "not_before": None}) if each.crowded else each for each in left]
    return _with(instance, left)


def changed(instance: Instance, before: Replica, after: Replica) -> Instance:
    """Only if nobody wanted something else of it meanwhile; otherwise the instance as it is."""
    return _with(instance, [after if each == before else each for each in instance.replicas])


def summed_up(instance: Instance, now: datetime) -> Instance:
    """State and reason of the whole follow from its replicas."""
    state, reason = _summary(instance)
    if (instance.state, instance.reason) == (state, reason):
        return instance
    since = instance.since if instance.state is state else now
    return instance.model_copy(update={"state": state, "reason": reason, "since": since})


def happened(before: Instance | None, after: Instance, now: datetime) -> Iterator[InstanceEvent]:
    """What is told of a change: of each replica, and of the whole where that is not the same."""
    then = {each.number: (each.state, each.reason) for each in before.replicas} if before else {}
    for each in after.replicas:
        if then.get(each.number) != (each.state, each.reason):
            yield InstanceEvent(
                name=after.name,
                at=now,
                generation=each.generation,
                state=each.state,
                message=each.reason,
                replica=each.number,
            )
    if len(after.replicas) != 1 and (before is None or before.state is not after.state):
        yield InstanceEvent(
            name=after.name, at=now, generation=after.generation, state=after.state, message=after.reason
        )


def _hurried(instance: Instance) -> Instance:
    """Who asks again with less time to drain gets it."""
    least = {"drain_seconds": instance.drain_seconds}
    return _with(
        instance,
        [
            each.model_copy(update=least) if each.drain_seconds > instance.drain_seconds else each
            for each in instance.replicas
        ],
    )


def _in_step(instance: Instance) -> Instance:
    """What may change without another engine is taken over."""
    policy = instance.request.restart_policy
    return _with(
        instance,
        [
            each
            if each.request.restart_policy is policy
            else each.model_copy(update={"request": each.request.model_copy(update={"restart_policy": policy})})
            for each in instance.replicas
        ],
    )


def _rolled(instance: Instance, now: datetime) -> Instance:
    stays = [each for each in instance.replicas if each.wanted == "running"]
    old = [each for each in stays if is_outdated(each, instance)]
    new = [each for each in stays if each not in old]
    instance = _fewer(instance, new, old, now)
    if not old:
        return _more(instance, instance.count - len(new), now)
    coming = [each for each in new if each.state not in SERVING]
    if len(new) < instance.count and not coming:
        return _more(instance, 1, now)
    leaving = any(each.wanted == "gone" for each in instance.replicas)
    if any(each.crowded >= TRIED for each in coming) and not leaving:
        why = "there is no room for the new one beside it: it ends before that starts"
        return retired(instance, old[:1], why, now)
    return instance


def _fewer(instance: Instance, new: Sequence[Replica], old: Sequence[Replica], now: datetime) -> Instance:
    """Too many new ones end, those that do not serve first; old ones as soon as new ones serve in their place."""
    surplus = sorted(new, key=lambda each: (each.state in SERVING, -each.number))[: max(0, len(new) - instance.count)]
    instance = retired(instance, surplus, "fewer replicas are wanted", now)
    given_up = any(each.state is InstanceState.FAILED for each in new)
    idle = [] if given_up or not new else [each for each in old if each.state not in SERVING]
    serving = [each for each in old if each.state in SERVING]
    ready = sum(each.state is InstanceState.READY for each in new)
    replaced = serving[: max(0, ready + len(serving) - instance.count)]
    return retired(instance, [*idle, *replaced], "a new one took its place", now)


def _more(instance: Instance, count: int, now: datetime) -> Instance:
    if count < 1:
        return instance
    asked = share(instance.request, instance.count)
    numbers = range(instance.numbers, instance.numbers + count)
    fresh = [Replica(number=number, request=asked, since=now) for number in numbers]
    return _with(instance.model_copy(update={"numbers": numbers.stop}), [*instance.replicas, *fresh])


def _ended(replica: Replica, instance: Instance, why: str, now: datetime) -> Replica:
    gone = replica.model_copy(update={"wanted": "gone", "drain_seconds": instance.drain_seconds})
    stops = {"state": InstanceState.STOPPING, "reason": why, "since": now}
    return gone.model_copy(update=stops) if replica.parts else gone


def _again(replica: Replica, instance: Instance, why: str) -> Replica:
    state = InstanceState.STOPPING if replica.parts else InstanceState.PLANNED
    forgotten = {
        "failures": 0,
        "failure": "",
        "given_up": False,
        "eased": Eased(),
        "lost": (),
        "not_before": None,
        "crowded": 0,
    }
    again = {"state": state, "reason": why, "drain_seconds": instance.drain_seconds}
    return replica.model_copy(update=forgotten | again)


def _summary(instance: Instance) -> tuple[InstanceState, str]:
    if instance.wanted == "stopped" and not instance.replicas:
        return InstanceState.STOPPED, ""
    if instance.wanted != "running":
        return InstanceState.STOPPING, "it is not wanted any more"
    stays = [each for each in instance.replicas if each.wanted == "running"]
    old = [each for each in stays if is_outdated(each, instance)]
    ready = [each for each in stays if each.state is InstanceState.READY]
    told = f"a changed deployment comes: {len(old)} of the earlier one still there" if old else ""
    if len(ready) >= instance.count:
        return InstanceState.READY, _joined(told, *_problems(stays))
    if instance.count == 1 and len(stays) == 1:
        return stays[0].state, stays[0].reason
    if any(each.state in SERVING for each in stays):
        lacking = f"{len(ready)} of {instance.count} replicas are ready"
        return InstanceState.DEGRADED, _joined(told or lacking, *_problems(stays))
    states = {each.state for each in stays}
    return next((state for state in _NEAREST if state in states), InstanceState.PLANNED), _joined(*_problems(stays))


def _problems(replicas: Collection[Replica]) -> list[str]:
    return [f"replica {each.number}: {each.reason}" for each in replicas if each.reason][:3]


def _joined(*words: str) -> str:
    return "; ".join(word for word in words if word)[:1000]


def _with(instance: Instance, replicas: Sequence[Replica]) -> Instance:
    made = tuple(replicas)
    return instance if made == instance.replicas else instance.model_copy(update={"replicas": made})
