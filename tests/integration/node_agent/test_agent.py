"""The agent's promises, with function jobs on a bus in memory."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from libs.common.contracts.node_registry import DISCOVER, Discover
from libs.common.contracts.streams import WORK_OBJECTS, WORK_OUT
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    STOP,
    Assignments,
    StopAttempts,
    WorkCompleted,
    WorkFailed,
)
from libs.common.errors import Conflict, WrongSetting
from services.node_agent import wiring
from services.node_agent.model import Outcome
from services.node_agent.store_sqlite import SqliteJournal
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.functions import gate, reached
from tests.integration.node_agent.mesh import agent, bare_agent, function_job, job, marshaling, start_agent

LOG_MADE = datetime(2030, 1, 1, tzinfo=UTC)


async def test_an_attempt_is_run_and_its_result_told_under_its_token(tmp_path: Path):
    assignment = function_job("echo", {"a": [1, 2]})
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        answers = await other.assign(assignment)
        outcome = await other.outcome_of(assignment)
        await until(lambda: "mesh_agent_outcomes_undelivered 0.0" in at_work.metrics())
        path = f"/api/v1/jobs/{assignment.work_id}@{assignment.attempt}"
        shown = await at_work.shown_once(path, lambda job: job["state"] == "delivered")

    assert (shown["state"], shown["succeeded"]) == ("delivered", True)
    assert [answer.accepted for answer in answers] == [True]
    assert isinstance(outcome, WorkCompleted)
    assert outcome.result == {"a": [1, 2]}
    assert outcome.work_id == assignment.work_id
    assert outcome.node_id == "node-1"
    assert outcome.started_at is not None
    assert outcome.ended_at is not None


async def test_a_large_payload_is_fetched_and_a_large_result_put_aside(tmp_path: Path):
    payload = {"function": "echo", "arguments": ["é" * 600_000]}
    async with marshaling() as other, agent(other.server, tmp_path):
        objects = other.bus.objects(WORK_OBJECTS)
        ref = await objects.put("payload-1", json.dumps(payload).encode())
        assignment = function_job("echo", None).model_copy(update={"payload": None, "payload_ref": ref})
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

        assert isinstance(outcome, WorkCompleted)
        assert outcome.result is None
        assert outcome.result_ref is not None
        assert outcome.result_ref.name == f"result-{assignment.attempt_token}"
        assert json.loads(await objects.get(outcome.result_ref)) == ["é" * 600_000]


@pytest.mark.parametrize("digest", [None, "SHA-256=" + "A" * 43 + "="])
async def test_a_payload_that_is_gone_or_another_one_fails_the_item_for_good(tmp_path: Path, digest: str | None):
    async with marshaling() as other, agent(other.server, tmp_path):
        objects = other.bus.objects(WORK_OBJECTS)
        ref = await objects.put("payload-1", b"{}")
        if digest is None:
            await objects.remove("payload-1")
        wrong = ref.model_copy(update={"digest": digest or ref.digest})
        assignment = function_job("echo", None).model_copy(update={"payload": None, "payload_ref": wrong})
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

        assert isinstance(outcome, WorkFailed)
        assert (outcome.error.code, outcome.error.retryable) == ("payload_lost", False)


async def test_a_token_that_is_known_is_accepted_again_and_not_started_twice(tmp_path: Path):
    lines = tmp_path / "lines"
    assignment = function_job("append_line", {"file": str(lines), "line": "once"})
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.assign(assignment)
        await other.outcome_of(assignment)
        again = await other.assign(assignment, assignment, again=True)

    assert [answer.accepted for answer in again] == [True, True]
    assert lines.read_text() == "once\n"
    assert len(other.outcomes) == 1


async def test_a_token_that_is_known_is_accepted_again_also_when_no_slot_is_free(tmp_path: Path):
    busy = function_job("wait_at", "known-without-slot")
    done = function_job("echo", 1)
    async with marshaling() as other, agent(other.server, tmp_path, {"AGENT_FUNCTION_SLOTS": "1"}):
        await other.assign(done)
        await other.outcome_of(done)
        await other.assign(busy)
        again = await other.assign(done, again=True)
        gate("known-without-slot").set()
        await other.outcome_of(busy)

    assert again[0].accepted


async def test_what_has_no_slot_is_refused_with_the_reason(tmp_path: Path):
    first, second = function_job("wait_at", "one-slot"), function_job("echo")
    async with marshaling() as other, agent(other.server, tmp_path, {"AGENT_FUNCTION_SLOTS": "1"}):
        answers = await other.assign(first, second)
        gate("one-slot").set()
        await other.outcome_of(first)
        await until(lambda: other.workloads and other.workloads[-1].free_slots == 1)
        later = await other.assign(second)

    assert [answer.accepted for answer in answers] == [True, False]
    assert answers[1].reason == "no slot is free"
    assert later[0].accepted


async def test_a_kind_of_work_that_is_not_done_here_is_refused(tmp_path: Path):
    async with marshaling() as other, agent(other.server, tmp_path):
        answers = await other.assign(job("inference", {"prompt": "x"}), job("container", {}))

    assert [answer.accepted for answer in answers] == [False, False]
    assert answers[0].reason == "no inference is done here"


@pytest.mark.parametrize(
    ("name", "arguments", "code", "retryable"),
    [
        ("fail", 3, "function_failed", True),
        ("unheard_of", None, "no_such_function", True),
        ("huge", 33 * 1024 * 1024, "result_too_large", False),
        ("not_json", None, "bad_result", False),
    ],
)
async def test_what_goes_wrong_is_told_with_a_code_and_whether_to_try_again(
    tmp_path: Path, name: str, arguments: object, code: str, retryable: bool
):
    assignment = function_job(name, arguments)
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == (code, retryable)


async def test_an_attempt_that_takes_too_long_fails_and_may_be_tried_again(tmp_path: Path):
    assignment = function_job("wait_at", "too-long", timeout_seconds=0.1)
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)
        gate("too-long").set()

    assert isinstance(outcome, WorkFailed)
    assert outcome.error.code == "timed_out"
    assert outcome.error.retryable


async def test_a_function_that_cannot_be_ended_keeps_its_slot_until_it_returns(tmp_path: Path):
    assignment = function_job("wait_at", "lingers", timeout_seconds=0.1)
    async with marshaling() as other, agent(other.server, tmp_path, {"AGENT_FUNCTION_SLOTS": "1"}):
        await other.assign(assignment)
        await other.outcome_of(assignment)
        while_it_lingers = await other.assign(function_job("echo"))
        await until(lambda: other.workloads[-1].free_slots == 0)
        gate("lingers").set()
        await until(lambda: other.workloads[-1].free_slots == 1, seconds=2)
        afterwards = await other.assign(function_job("echo"))

    assert not while_it_lingers[0].accepted
    assert afterwards[0].accepted


async def test_a_stopped_attempt_ends_without_an_outcome(tmp_path: Path):
    assignment = function_job("wait_at", "stopped")
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.assign(assignment)
        gate("stopped")
        await until(lambda: reached["stopped"].is_set())
        answer = await other.stop(assignment.attempt_token or "", "never-heard-of")
        gate("stopped").set()
        shown = (await at_work.get(f"/api/v1/jobs/{assignment.work_id}@{assignment.attempt}")).json()

    assert answer.stopped == (assignment.attempt_token,)
    assert answer.unknown == ("never-heard-of",)
    assert shown["state"] == "stopped"
    assert other.outcomes == []


async def test_an_attempt_stopped_before_its_first_step_gives_its_slot_back(tmp_path: Path):
    many = tuple(function_job("echo") for _ in range(5))
    tokens = tuple(each.attempt_token or "" for each in many)
    async with bare_agent(tmp_path, slots=len(many)) as bare:
        # Awaited directly, nothing else runs between the two.
        await bare.assign(Assignments(epoch=1, assignments=many, again=True))
        answer = await bare.stop(StopAttempts(attempt_tokens=tokens, reason="test"))
        shown = [await bare.job(f"{each.work_id}@1") for each in many]

        assert answer.stopped == tokens
        assert {each.state for each in shown} == {"stopped"}
        assert bare.pools()[0].free_slots == len(many)


async def test_a_leader_that_was_replaced_can_neither_stop_nor_give_an_attempt(tmp_path: Path):
    kept, late = function_job("wait_at", "kept"), function_job("echo")
    token = kept.attempt_token or ""
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.request(ASSIGN, Assignments(epoch=3, log_made=LOG_MADE, assignments=(kept,)))
        with pytest.raises(Conflict, match="epoch 2 is over here: a leader of epoch 3 was heard"):
            await other.request(STOP, StopAttempts(epoch=2, log_made=LOG_MADE, attempt_tokens=(token,), reason="test"))
        with pytest.raises(Conflict, match="epoch 2 is over here"):
            await other.request(ASSIGN, Assignments(epoch=2, log_made=LOG_MADE, assignments=(late,)))
        gate("kept").set()
        assert isinstance(await other.outcome_of(kept), WorkCompleted)
        stop = StopAttempts(epoch=3, log_made=LOG_MADE, attempt_tokens=(token, late.attempt_token or ""), reason="test")
        answer = await other.request(STOP, stop)

    assert (answer.stopped, answer.unknown) == ((token,), (late.attempt_token,))


async def test_outcomes_wait_while_the_stream_is_full(tmp_path: Path):
    small = replace(WORK_OUT, max_bytes=1500)
    jobs = [function_job("echo", "x" * 800) for _ in range(2)]
    async with marshaling(stream=small) as other, agent(other.server, tmp_path) as at_work:
        await other.assign(*jobs)
        await until(lambda: "mesh_agent_outcome_delivery_failures_total 1.0" in at_work.metrics())
        await until(lambda: len(other.outcomes) == 1)
        await other.bus.purge(WORK_OUT, below=10)
        await until(lambda: len(other.outcomes) == 2)

    assert {outcome.attempt_token for outcome in other.outcomes} == {each.attempt_token for each in jobs}


async def test_an_attempt_keeps_its_lease_until_its_outcome_is_delivered(tmp_path: Path):
    """Otherwise what is done already would be done again elsewhere."""
    assignment = function_job("echo", 1, lease_seconds=0.3)
    full = replace(WORK_OUT, max_bytes=10)
    async with marshaling(stream=full) as other, agent(other.server, tmp_path) as at_work:
        await other.assign(assignment)
        await until(lambda: "mesh_agent_outcome_delivery_failures_total 1.0" in at_work.metrics())
        heard = len(other.progress)
        await until(lambda: len(other.progress) >= heard + 4, seconds=3)

    assert {each.attempts[0].attempt_token for each in other.progress[-4:]} == {assignment.attempt_token}


async def test_leases_are_renewed_within_a_third_of_the_lease_however_busy_the_job(tmp_path: Path):
    assignment = function_job("wait_at", "renewed", lease_seconds=0.6)
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.assign(assignment)
        await until(lambda: len(other.progress) >= 4)
        gate("renewed").set()
        await other.outcome_of(assignment)

    times = [message.at for message in other.progress[:4]]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert max(gaps) < 0.4
    assert all(message.attempts[0].attempt_token == assignment.attempt_token for message in other.progress[:4])


async def test_the_workload_says_what_runs_and_what_is_free(tmp_path: Path):
    assignment = function_job("wait_at", "workload")
    async with marshaling() as other, agent(other.server, tmp_path, {"AGENT_FUNCTION_SLOTS": "3"}):
        await until(lambda: other.workloads)
        before = other.workloads[-1]
        await other.assign(assignment)
        await until(lambda: other.workloads[-1].running)
        during = other.workloads[-1]
        gate("workload").set()
        await until(lambda: not other.workloads[-1].running)

    assert (before.slots, before.free_slots, before.work_types) == (3, 3, ("function",))
    assert (during.free_slots, during.running) == (2, (assignment.attempt_token,))
    assert during.pools[0].work_types == ("function",)


async def test_whoever_asks_all_nodes_to_show_themselves_is_answered_at_once(tmp_path: Path):
    async with marshaling() as other, agent(other.server, tmp_path):
        await until(lambda: other.workloads)
        count = len(other.workloads)
        await other.bus.publish(DISCOVER, Discover(asked_by="test"))
        await until(lambda: len(other.workloads) > count, seconds=1)


async def test_outcomes_are_kept_while_nats_is_away_and_delivered_when_it_is_back(tmp_path: Path):
    assignment = function_job("wait_at", "away")
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.assign(assignment)
        gate("away")
        await until(lambda: reached["away"].is_set())
        other.server.stop()
        gate("away").set()
        await until(lambda: "mesh_agent_outcomes_undelivered 1.0" in at_work.metrics())
        other.server.start()
        outcome = await other.outcome_of(assignment)
        await until(lambda: "mesh_agent_outcomes_undelivered 0.0" in at_work.metrics())

    assert isinstance(outcome, WorkCompleted)
    assert len(other.outcomes) == 1


async def test_what_an_earlier_run_had_accepted_is_reported_as_failed_and_not_run_again(tmp_path: Path):
    lines = tmp_path / "lines"
    assignment = function_job("append_line", {"file": str(lines), "line": "again"})
    journal = SqliteJournal(tmp_path / "node_agent" / "journal.db")
    await journal.open()
    await journal.accept([assignment], datetime(2030, 1, 1, tzinfo=UTC))
    await journal.close()

    async with marshaling() as other, agent(other.server, tmp_path):
        outcome = await other.outcome_of(assignment)
        answers = await other.assign(assignment, again=True)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("agent_restarted", True)
    assert answers[0].accepted
    assert not lines.exists()


async def test_what_an_earlier_run_could_not_deliver_is_delivered(tmp_path: Path):
    assignment = function_job("echo")
    journal = SqliteJournal(tmp_path / "node_agent" / "journal.db")
    await journal.open()
    await journal.accept([assignment], datetime(2030, 1, 1, tzinfo=UTC))
    await journal.ended(assignment.attempt_token or "", Outcome(result={"kept": True}))
    await journal.close()

    async with marshaling() as other, agent(other.server, tmp_path):
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkCompleted)
    assert outcome.result == {"kept": True}


async def test_jobs_may_finish_while_the_agent_stops_and_the_rest_is_reported_as_failed(tmp_path: Path):
    short, long = function_job("wait_at", "short"), function_job("wait_at", "long")
    async with marshaling() as other:
        at_work = await start_agent(other.server, tmp_path, {"AGENT_DRAIN_SECONDS": "0.5"})
        await other.assign(short, long)
        gate("short").set()
        await at_work.end()
        gate("long").set()
        ended = {outcome.work_id: outcome for outcome in [await other.outcome_of(each) for each in (short, long)]}

    assert isinstance(ended[short.work_id], WorkCompleted)
    failed = ended[long.work_id]
    assert isinstance(failed, WorkFailed)
    assert (failed.error.code, failed.error.retryable) == ("agent_stopping", True)


async def test_an_agent_that_stops_says_so_and_takes_nothing_more(tmp_path: Path):
    async with marshaling() as other:
        at_work = await start_agent(other.server, tmp_path)
        await other.assign(function_job("wait_at", "stops"))
        ending = asyncio.create_task(at_work.end())
        await until(lambda: other.workloads and other.workloads[-1].draining)
        answers = await other.assign(function_job("echo"))
        gate("stops").set()
        await ending

    assert not answers[0].accepted
    assert answers[0].reason == "this node is draining: its agent stops"
    assert other.workloads[-1].free_slots == 0


async def test_a_second_agent_on_the_same_folder_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wiring, "SqliteJournal", partial(SqliteJournal, lock_seconds=0.1))
    async with marshaling() as other, agent(other.server, tmp_path):
        with pytest.raises(WrongSetting, match=r"another node agent is using .*MESH_DATA_DIR"):
            await start_agent(other.server, tmp_path)


async def test_many_attempts_at_once_all_end_once(tmp_path: Path):
    jobs = [function_job("echo", number) for number in range(300)]
    async with marshaling() as other, agent(other.server, tmp_path, {"AGENT_FUNCTION_SLOTS": "300"}) as at_work:
        answers = await other.assign(*jobs)
        await until(lambda: len(other.outcomes) >= 300)
        listed = await at_work.shown_once("/api/v1/jobs", lambda jobs: jobs["running"] == 0)

    assert all(answer.accepted for answer in answers)
    assert sorted(outcome.attempt_token or "" for outcome in other.outcomes) == sorted(
        each.attempt_token or "" for each in jobs
    )
    assert listed["running"] == 0


@pytest.mark.parametrize("shown", ["no-such-item@1", "kept@3", "kept@01", "kept", "a secret"])
async def test_an_unknown_job_is_not_found(tmp_path: Path, shown: str):
    job = function_job("echo", work_id="kept", attempt=2, attempt_token="a secret")
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.assign(job)
        await other.outcome_of(job)
        answer = await at_work.get(f"/api/v1/jobs/{shown}")

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


async def test_a_job_is_shown_by_its_item_and_number_while_it_runs_and_after_and_its_token_never(tmp_path: Path):
    job = function_job("wait_at", "shown", work_id="item:1", attempt=2, attempt_token="a secret")
    async with marshaling() as other, agent(other.server, tmp_path) as at_work:
        await other.assign(job)
        paths = ("/api/v1/jobs", "/api/v1/jobs/item:1@2", "/api/v1/jobs/item:1@2/logs")
        running = [(await at_work.get(path)).text for path in paths]
        gate("shown").set()
        await other.outcome_of(job)
        await at_work.shown_once(paths[1], lambda job: job["state"] == "delivered")
        over = [(await at_work.get(path)).text for path in paths]

    assert all('"job_id":"item:1@2"' in text and "secret" not in text for text in (*running, *over))


async def test_an_item_whose_deadline_has_passed_is_not_run(tmp_path: Path):
    lines = tmp_path / "lines"
    past = datetime.now(UTC) - timedelta(seconds=1)
    assignment = function_job("append_line", {"file": str(lines), "line": "late"}, deadline=past)
    async with marshaling() as other, agent(other.server, tmp_path):
        await other.assign(assignment)
        outcome = await other.outcome_of(assignment)

    assert isinstance(outcome, WorkFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("deadline_passed", False)
    assert not lines.exists()
