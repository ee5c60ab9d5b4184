"""Which replicas are added and which end: what serves goes on serving wherever there is room for it."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.vllm_instances import (
    DeployRequest,
    Instance,
    InstancePart,
    InstanceState,
    Replica,
    RestartPolicy,
)
from services.vllm_orchestrator.rollout import (
    SERVING,
    TRIED,
    anew,
    changed,
    happened,
    is_outdated,
    proceed,
    retired,
    share,
    summed_up,
    without,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PARTS = (InstancePart(rank=0, node_id="a", arguments=(), reservation_id="r"),)
READY, FAILED, STARTING = InstanceState.READY, InstanceState.FAILED, InstanceState.STARTING


def request_of(**changes: object) -> DeployRequest:
    return DeployRequest.model_validate({"model_name": "m", "instance_name": "one"} | changes)


def instance_of(count: int = 1, *states: InstanceState, **changes: object) -> Instance:
    asked = request_of(**changes)
    made = Instance(name="one", request=asked, count=count, created_at=NOW, since=NOW, numbers=len(states))
    replicas = [
        Replica(number=number, request=share(asked, count), state=state, since=NOW, parts=PARTS)
        for number, state in enumerate(states)
    ]
    return summed_up(made.model_copy(update={"replicas": tuple(replicas)}), NOW)


def redeployed(instance: Instance, **changes: object) -> Instance:
    return instance.model_copy(update={"request": request_of(**changes)})


def after(instance: Instance) -> Instance:
    found = proceed(instance, NOW)
    assert found is not None
    return found


def become(instance: Instance, number: int, state: InstanceState, **changes: object) -> Instance:
    before = next(each for each in instance.replicas if each.number == number)
    return changed(instance, before, before.model_copy(update={"state": state} | changes))


def leaving(instance: Instance) -> list[int]:
    return [each.number for each in instance.replicas if each.wanted == "gone"]


def test_as_many_replicas_are_made_as_are_wanted_and_no_more():
    made = after(instance_of(3))
    assert [each.number for each in made.replicas] == [0, 1, 2]
    assert after(made) == made


def test_an_instance_is_ready_when_all_replicas_are_and_degraded_when_some_are():
    assert instance_of(2, READY, READY).state is READY
    some = instance_of(2, READY, STARTING)
    assert (some.state, "1 of 2" in some.reason) == (InstanceState.DEGRADED, True)
    assert instance_of(2, STARTING, InstanceState.PLANNED).state is STARTING
    assert instance_of(2, FAILED, FAILED).state is FAILED
    assert instance_of(1, STARTING).state is STARTING


def test_requests_at_once_are_shared_among_replicas():
    asked = share(request_of(concurrency=8, replicas=4, auto_start=False), 4)
    assert (asked.concurrency, asked.replicas, asked.auto_start) == (2, 1, True)
    assert share(request_of(), 4).concurrency == 1


def test_more_replicas_leave_those_there_are_alone():
    more = after(redeployed(instance_of(1, READY), replicas=3).model_copy(update={"count": 3}))
    assert [(each.number, each.state) for each in more.replicas] == [(0, "READY"), (1, "PLANNED"), (2, "PLANNED")]


def test_of_fewer_replicas_those_end_first_that_do_not_serve():
    fewer = after(instance_of(3, READY, STARTING, READY).model_copy(update={"count": 1}))
    assert leaving(fewer) == [1, 2]


def test_another_restart_policy_takes_no_other_engine():
    now = after(redeployed(instance_of(1, READY), restart_policy="never"))
    assert [each.number for each in now.replicas] == [0]
    assert now.replicas[0].request.restart_policy is RestartPolicy.NEVER


def test_an_old_replica_serves_until_a_new_one_does():
    rolling = after(redeployed(instance_of(1, READY), max_model_len=64))
    assert (len(rolling.replicas), leaving(rolling), rolling.state) == (2, [], READY)
    assert "changed deployment" in rolling.reason
    there = after(become(rolling, 1, READY))
    assert leaving(there) == [0]
    assert there.replicas[0].reason == "a new one took its place"
    assert after(without(there, there.replicas[0])).reason == ""


def test_an_old_replica_ends_before_where_there_is_no_room_for_both():
    rolling = after(redeployed(instance_of(2, READY, READY), max_model_len=64))
    once = after(become(rolling, 2, InstanceState.PLANNED, crowded=TRIED - 1))
    assert leaving(once) == []
    crowded = after(become(rolling, 2, InstanceState.PLANNED, crowded=TRIED, not_before=NOW))
    assert leaving(crowded) == [0]
    assert "no room" in crowded.replicas[0].reason
    assert after(crowded) == crowded
    freed = without(crowded, crowded.replicas[0].model_copy(update={"generation": 1}))
    assert [(each.number, each.crowded, each.not_before) for each in freed.replicas] == [(1, 0, None), (2, 0, None)]


def test_a_new_one_that_is_given_up_leaves_the_old_one_serving():
    rolling = after(redeployed(instance_of(1, READY), max_model_len=64))
    stuck = after(become(rolling, 1, FAILED, reason="it does not know an argument"))
    assert (leaving(stuck), stuck.state) == ([], READY)
    assert "does not know" in stuck.reason
    again = after(redeployed(stuck, max_model_len=128))
    assert leaving(again) == []
    assert len(again.replicas) == 3
    assert after(become(again, 2, READY)).replicas[0].wanted == "gone"


def test_a_restart_ends_every_replica_and_forgets_what_failed():
    failing = become(instance_of(2, READY, FAILED), 1, FAILED, failures=6, given_up=True)
    now = anew(failing, "a restart was asked for")
    assert [(each.state, each.failures, each.given_up) for each in now.replicas] == [("STOPPING", 0, False)] * 2


def test_what_is_not_wanted_loses_its_replicas_and_then_itself():
    unwanted = after(instance_of(2, READY, READY).model_copy(update={"wanted": "gone"}))
    assert (leaving(unwanted), unwanted.state) == ([0, 1], InstanceState.STOPPING)
    assert proceed(unwanted.model_copy(update={"replicas": ()}), NOW) is None
    stopped = unwanted.model_copy(update={"replicas": (), "wanted": "stopped"})
    assert after(stopped).state is InstanceState.STOPPED


def test_who_asks_again_with_less_time_to_drain_gets_it():
    patient = instance_of(1, READY).model_copy(update={"wanted": "gone", "drain_seconds": 60.0})
    ending = after(patient)
    assert ending.replicas[0].drain_seconds == 60
    assert after(ending.model_copy(update={"drain_seconds": 0.0})).replicas[0].drain_seconds == 0
    assert after(ending.model_copy(update={"drain_seconds": 90.0})).replicas[0].drain_seconds == 60


def test_another_time_to_drain_takes_no_other_engine():
    assert len(after(redeployed(instance_of(1, READY), drain_seconds=5)).replicas) == 1


def test_one_event_is_told_for_each_replica_that_changed():
    before = instance_of(2, STARTING, STARTING)
    now = summed_up(become(before, 1, READY), NOW)
    assert [(each.replica, each.state) for each in happened(before, now, NOW)] == [(1, READY), (None, "DEGRADED")]


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["up", "crowd", "fall", "fail"])), max_size=40)


@given(st.integers(1, 3), EVENTS)
def test_however_a_change_goes_no_more_than_one_serving_replica_is_given_up_at_once(count, events):
    instance = after(redeployed(instance_of(count, *[READY] * count), max_model_len=64))
    for number, what in events:
        here = [each for each in instance.replicas if each.number == number and each.wanted == "running"]
        for each in here:
            state = {"up": READY, "crowd": InstanceState.PLANNED, "fall": STARTING, "fail": FAILED}[what]
            if is_outdated(each, instance) and what != "up":
                continue
            instance = become(instance, number, state, crowded=TRIED if what == "crowd" else 0)
        before = sum(each.state in SERVING and each.wanted == "running" for each in instance.replicas)
        instance = after(after(instance))
        assert after(instance) == instance
        now = sum(each.state in SERVING and each.wanted == "running" for each in instance.replicas)
        assert now >= min(before, count) - 1
        if not any(each.crowded for each in instance.replicas):
            assert now >= min(before, count)
        for gone in [each for each in instance.replicas if each.wanted == "gone"]:
            instance = without(instance, gone.model_copy(update={"generation": 1}))


@given(st.integers(1, 4))
def test_a_change_comes_to_its_end_where_there_is_never_room_for_both(count):
    instance = after(redeployed(instance_of(count, *[READY] * count), max_model_len=64))
    for _ in range(6 * count):
        for each in list(instance.replicas):
            if each.wanted == "gone":
                instance = without(instance, each)
            elif each.state is InstanceState.PLANNED:
                room = len(instance.replicas) <= count
                state = READY if room else InstanceState.PLANNED
                instance = become(instance, each.number, state, crowded=0 if room else each.crowded + 1)
        instance = after(instance)
    assert [each.state for each in instance.replicas] == [READY] * count
    assert not any(is_outdated(each, instance) for each in instance.replicas)


def test_who_ends_already_is_not_ended_for_another_reason():
    once = retired(instance_of(1, READY), instance_of(1, READY).replicas, "first", NOW)
    assert retired(once, once.replicas, "second", NOW) == once
