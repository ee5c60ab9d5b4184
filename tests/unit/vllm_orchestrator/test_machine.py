"""What becomes of replicas: every history ends well, and nothing is given back while it runs."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.engine_hosting import EngineProgram, HostedEngine
from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.vllm_instances import (
    DeployRequest,
    InstancePart,
    InstanceState,
    Replica,
    RestartPolicy,
)
from services.vllm_orchestrator.failures import Failure, Remedy, classify
from services.vllm_orchestrator.machine import (
    LONGEST_PAUSE_SECONDS,
    MOST_FAILURES,
    RUNNING,
    Effect,
    Sight,
    ease,
    failed,
    pause,
    step,
)
from tests.fake_engine import FAILURES

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LOADED, PROFILED = "Model loading took 1 GiB\n", "Model loading took 1 GiB\nGPU KV cache size: 9 tokens\n"


def replica_of(state: InstanceState = InstanceState.STARTING, parts: int = 1, **changes: object) -> Replica:
    request = DeployRequest(model_name="m", instance_name="one")
    made = Replica(request=request, state=state, generation=1, since=NOW, slots=64)
    kept = tuple(
        InstancePart(rank=rank, node_id=f"n{rank}", arguments=(), reservation_id=f"one/1/n{rank}")
        for rank in range(parts)
    )
    return made.model_copy(update={"parts": kept} | changes)


def engine_of(state: EngineState = EngineState.READY, rank: int = 0, **changes: object) -> HostedEngine:
    made = HostedEngine(
        instance="one",
        generation=1,
        rank=rank,
        program=EngineProgram.VLLM,
        model_name="m",
        state=state,
        started_at=NOW,
        ended_at=NOW if state in (EngineState.FAILED, EngineState.STOPPED) else None,
    )
    return made.model_copy(update=changes)


def sight_of(*engines: HostedEngine | None, seconds: float = 0, **changes: object) -> Sight:
    now = NOW + timedelta(seconds=seconds)
    return Sight(now=now, engines=dict(enumerate(engines)), **changes)  # type: ignore[arg-type]


def test_a_replica_is_ready_when_all_its_processes_are():
    both = replica_of(parts=2)
    half, _ = step(both, sight_of(engine_of(), engine_of(EngineState.STARTING, 1)))
    whole, _ = step(both, sight_of(engine_of(), engine_of(rank=1)))
    assert (half.state, whole.state) == (InstanceState.STARTING, InstanceState.READY)


def test_an_agent_that_is_silent_degrades_an_instance_and_ends_nothing():
    now, effect = step(replica_of(InstanceState.READY), sight_of())
    assert (now.state, effect) == (InstanceState.DEGRADED, None)
    assert "n0" in now.reason
    assert step(now, sight_of(engine_of()))[0].state is InstanceState.READY


def test_a_node_that_is_gone_makes_the_instance_go_elsewhere():
    lost, _ = step(replica_of(InstanceState.READY), sight_of(offline=frozenset({"n0"})))
    released, effect = step(lost, sight_of(offline=frozenset({"n0"})))
    assert (lost.state, lost.lost, lost.given_up) == (InstanceState.STOPPING, ("n0",), False)
    assert effect is Effect.RELEASE
    assert step(released.model_copy(update={"parts": ()}), sight_of())[0].state is InstanceState.PLANNED


def test_memory_is_given_back_only_when_nothing_runs_any_more():
    stopping = replica_of(InstanceState.STOPPING, wanted="gone")
    assert step(stopping, sight_of(engine_of()))[1] is Effect.STOP
    assert step(stopping, sight_of())[1] is Effect.STOP
    assert step(stopping, sight_of(engine_of(EngineState.STOPPED, ended_at=None)))[1] is Effect.STOP
    assert step(stopping, sight_of(engine_of(EngineState.STOPPED)))[1] is Effect.RELEASE
    assert step(stopping, sight_of(None))[1] is Effect.RELEASE
    assert step(stopping.model_copy(update={"parts": ()}), sight_of())[1] is Effect.FORGET


def test_a_start_that_was_interrupted_is_given_back_first():
    assert step(replica_of(InstanceState.PLANNED), sight_of())[0].state is InstanceState.STOPPING


def test_an_engine_that_never_serves_is_ended_after_its_time():
    starting = sight_of(engine_of(EngineState.STARTING), seconds=11, start_seconds=10.0)
    now, _ = step(replica_of(), starting)
    assert now.state is InstanceState.STOPPING
    assert "10 s" in now.reason


def test_after_so_many_failures_in_a_row_it_is_given_up():
    crash = Failure("crash", Remedy.LATER, "it crashed")
    replica = replica_of()
    for _ in range(MOST_FAILURES):
        assert not replica.given_up
        replica = failed(replica.model_copy(update={"state": InstanceState.STARTING}), crash, sight_of())
    assert replica.given_up
    over = replica.model_copy(update={"parts": ()})
    assert step(over, sight_of())[0].state is InstanceState.FAILED


def test_a_failure_after_a_steady_minute_counts_as_the_first():
    crash = Failure("crash", Remedy.LATER, "it crashed")
    steady = replica_of(InstanceState.READY, failures=5)
    assert failed(steady, crash, sight_of(seconds=61)).failures == 1
    assert failed(steady, crash, sight_of(seconds=59)).failures == 6


def test_waiting_for_a_place_is_never_given_up():
    full = Failure("conflict", Remedy.WAIT, "it does not fit")
    never = replica_of(failures=100).request.model_copy(update={"restart_policy": RestartPolicy.NEVER})
    assert not failed(replica_of(failures=100, request=never), full, sight_of()).given_up


def test_what_ran_out_of_memory_gets_fewer_sequences_and_then_a_shorter_context():
    replica = replica_of(slots=64, context_tokens=8192)
    seen = []
    while (eased := ease(replica)) is not None:
        seen.append((eased.max_num_seqs, eased.max_model_len))
        replica = replica.model_copy(update={"eased": eased})
    assert seen == [(16, None), (4, None), (1, None), (1, 4096), (1, 2048), (1, 1024)]


def test_what_was_asked_for_is_never_shortened():
    request = DeployRequest(model_name="m", instance_name="one", max_model_len=8192, max_num_seqs=64)
    assert ease(replica_of(request=request, context_tokens=8192)) is None


@pytest.mark.parametrize(
    ("words", "kind", "remedy"),
    [
        (FAILURES["oom_at_load"][1], "oom_at_load", Remedy.ELSEWHERE),
        (LOADED + FAILURES["oom_at_profiling"][1], "oom_at_profiling", Remedy.EASE),
        (PROFILED + FAILURES["oom_at_capture"][1], "oom_at_capture", Remedy.EASE),
        (FAILURES["no_cache"][1], "no_cache", Remedy.EASE),
        (FAILURES["card_in_use"][1], "card_in_use", Remedy.ELSEWHERE),
        (FAILURES["port_taken"][1], "port_taken", Remedy.LATER),
        ("ValueError: max_num_seqs (256) exceeds available Mamba cache blocks (167).", "few_states", Remedy.EASE),
        ("vllm: error: unrecognized arguments: --x", "bad_flag", Remedy.GIVE_UP),
        ("huggingface_hub.errors.GatedRepoError: 401", "gated_model", Remedy.GIVE_UP),
        ("RuntimeError: NCCL error: unhandled system error", "nccl", Remedy.LATER),
        ("RuntimeError: something else", "crash", Remedy.LATER),
    ],
)
def test_why_an_engine_failed_is_read_from_its_log(words, kind, remedy):
    found = classify(engine_of(EngineState.FAILED, last_words=words, exit_code=1))
    assert (found.kind, found.remedy) == (kind, remedy)
    assert found.sentence


def test_an_engine_that_somebody_else_runs_is_watched_and_nothing_is_done_about_it():
    asked = DeployRequest.model_validate(
        {"model_name": "m", "instance_name": "one", "engine": "external", "url": "http://192.0.2.1:8000"}
    )
    new = replica_of(InstanceState.PLANNED, parts=0, request=asked)
    assert step(new, sight_of()) == (new, None)
    waiting, nothing = step(new, sight_of(external="it does not answer"))
    assert (waiting.state, waiting.reason, nothing) == (InstanceState.STARTING, "it does not answer", None)
    serving, _ = step(waiting, sight_of(external=""))
    assert (serving.state, serving.reason) == (InstanceState.READY, "")
    away, nothing = step(serving, sight_of(external="it does not answer"))
    assert (away.state, nothing) == (InstanceState.DEGRADED, None)
    assert step(away.model_copy(update={"wanted": "gone"}), sight_of())[1] is Effect.FORGET


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_grows_and_has_an_end(failures, chance):
    assert 1 <= pause(failures, chance) <= 1.5 * LONGEST_PAUSE_SECONDS


STATES = st.sampled_from(EngineState)
ENGINES = st.one_of(
    st.none(),
    st.builds(
        lambda state, words: engine_of(state, last_words=words),
        STATES,
        st.sampled_from(["", *(words for _, words in FAILURES.values())]),
    ),
)
SIGHTS = st.builds(
    lambda engines, seconds, offline: Sight(
        now=NOW + timedelta(seconds=seconds),
        engines=engines,
        offline=frozenset({"n0"}) if offline else frozenset(),
        start_seconds=60,
    ),
    st.dictionaries(st.integers(0, 1), ENGINES, max_size=2),
    st.integers(0, 1000),
    st.booleans(),
)


@given(st.sampled_from(InstanceState), st.sampled_from(["running", "gone"]), st.lists(SIGHTS, max_size=12))
def test_whatever_is_seen_a_running_engine_is_never_given_back_nor_placed_twice(state, wanted, sights):
    replica = replica_of(state, parts=2 if state in RUNNING | {InstanceState.RESERVED} else 0, wanted=wanted)
    for sight in sights:
        replica, effect = step(replica, sight)
        if effect in (Effect.PLACE, Effect.FORGET):
            assert replica.parts == ()
        if effect is Effect.RELEASE:
            for part in replica.parts:
                seen = sight.engines.get(part.rank)
                assert part.node_id in sight.offline or part.rank in sight.engines
                assert part.node_id in sight.offline or seen is None or seen.ended_at is not None
            replica = replica.model_copy(update={"parts": ()})


@given(st.sampled_from(InstanceState))
def test_what_is_not_wanted_is_forgotten_once_its_processes_have_ended(state):
    replica = replica_of(state, parts=2 if state in RUNNING | {InstanceState.RESERVED} else 0, wanted="gone")
    for _ in range(6):
        replica, effect = step(replica, sight_of(engine_of(EngineState.STOPPED), None))
        if effect is Effect.RELEASE:
            replica = replica.model_copy(update={"parts": ()})
    assert effect is Effect.FORGET


@given(st.sampled_from(InstanceState), SIGHTS)
def test_the_same_seen_again_changes_nothing_more(state, sight):
    replica = replica_of(state, parts=1 if state in RUNNING else 0)
    for _ in range(6):
        replica, _ = step(replica, sight)
    assert step(replica, sight)[0] == replica
