"""Nodes that fail: less work, then none, then a trial."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from libs.common.bus.bus import Bus
from libs.common.contracts.work_blacklist import BLACKLIST, BlacklistEntry, BlacklistNode
from libs.common.contracts.work_log import AttemptFailed, Blacklisted, Ended, Expired, ExpiryReason, Fact, Paroled
from libs.common.contracts.work_marshaling import WorkError, WorkLookup
from libs.common.errors import NotFound
from services.work_marshaling.conduct import Conduct, Key, is_node_fault, wilson_lower
from services.work_marshaling.model import Attempt, ConductRules, WorkItem
from tests.unit.work_marshaling.builders import NOW
from tests.unit.work_marshaling.house import House, Instance, Node, submit, view_of
from tests.unit.work_marshaling.test_scheduling import item

RULES = ConductRules()
Known = dict[Key, Blacklisted | Paroled]


def running(node_id: str = "n1", **fields: object) -> WorkItem:
    attempt = Attempt(number=1, token="t", node_id=node_id, assigned_at=NOW)
    return item("w", 1, **fields)._replace(attempts=(attempt,))


def done(at: datetime = NOW) -> Fact:
    return Ended(work_id="w", at=at, status="completed", attempt=1)


def failed(code: str = "engine_error", at: datetime = NOW, *, counted: bool = True) -> Fact:
    error = WorkError(code=code, message="")
    return AttemptFailed(work_id="w", attempt=1, at=at, error=error, out_seq=1, counted=counted)


def conduct_after(facts: Iterable[Fact], each: WorkItem | None = None, rules: ConductRules = RULES) -> Conduct:
    conduct = Conduct(rules)
    for fact in facts:
        conduct.hear(each or running(), fact, 16)
    return conduct


def due(conduct: Conduct, known: Known, now: datetime = NOW) -> list[Blacklisted | Paroled]:
    found = list(conduct.due(known, now))
    known.update({(fact.node_id, fact.model_name): fact for fact in found})
    return found


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_bound_is_below_the_rate_and_nears_it_with_more_attempts(failures: int, successes: int):
    attempts = failures + successes
    bound = wilson_lower(failures, attempts)

    assert 0 <= bound <= (failures / attempts if attempts else 0) + 1e-12
    assert wilson_lower(10 * failures, 10 * attempts) >= bound - 1e-12


def test_the_bound_is_that_of_the_formula():
    assert [round(wilson_lower(*pair), 4) for pair in ((3, 3), (4, 4), (8, 10))] == [0.4385, 0.5101, 0.4902]


@pytest.mark.parametrize(("failures", "listed"), [(3, False), (4, True)])
def test_a_few_failures_prove_little(failures: int, listed: bool):
    assert bool(due(conduct_after([failed()] * failures), {})) == listed


def test_a_node_that_fails_less_than_half_of_the_time_stays():
    assert due(conduct_after([failed(), done()] * 100), {}) == []


def test_what_is_long_ago_counts_no_more():
    later = NOW + timedelta(seconds=700)
    assert due(conduct_after([*[failed()] * 10, done(later)]), {}, later) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [("engine_error", True), ("node_disk_full", True), ("bad_payload", False), ("function_failed", False)],
)
def test_only_errors_that_say_something_about_the_node_count(code: str, fault: bool):
    assert is_node_fault(code) is fault
    assert bool(due(conduct_after([failed(code)] * 20), {})) is fault


def test_a_node_that_fails_with_one_model_is_blacklisted_for_that_one():
    (fact,) = due(conduct_after([failed()] * 5, running(model_name="m")), {})

    assert isinstance(fact, Blacklisted)
    assert (fact.node_id, fact.model_name) == ("n1", "m")


def test_terms_grow_to_their_limit_and_are_forgotten_after_a_good_day():
    conduct, known, now = Conduct(RULES), Known(), NOW
    terms = []
    for _ in range(9):
        for _ in range(4):
            conduct.hear(running(), failed(at=now), 16)
        (fact,) = due(conduct, known, now)
        assert isinstance(fact, Blacklisted)
        assert fact.until is not None
        terms.append((fact.until - fact.at).total_seconds())
        now = fact.until
        (paroled,) = due(conduct, known, now)
        assert isinstance(paroled, Paroled)
    assert terms == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]

    now += timedelta(days=2)
    for _ in range(4):
        conduct.hear(running(), failed(at=now), 16)
    assert due(conduct, known, now)[0].strikes == 1


def test_one_that_was_listed_by_hand_has_no_term():
    known: Known = {("n1", None): Blacklisted(node_id="n1", at=NOW, reason="noisy", by="operator")}

    assert due(Conduct(RULES), known, NOW + timedelta(days=99)) == []


def test_the_quota_halves_with_each_fast_failure_and_grows_with_each_success():
    conduct = Conduct(RULES)
    seen: list[int | None] = []
    for fact in (failed(), failed(), failed(), failed(), failed(), done(), done()):
        conduct.hear(running(), fact, 16)
        seen.append(conduct.quota("n1"))

    assert seen == [8, 4, 2, 1, 1, 2, 3]


def test_a_failure_that_took_its_time_halves_nothing():
    assert conduct_after([failed(at=NOW + timedelta(seconds=5))]).quota("n1") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 32))
def test_a_quota_is_never_below_one_nor_above_the_slots(ends: list[bool], slots: int):
    conduct = Conduct(RULES)
    for bad in ends:
        conduct.hear(running(), failed() if bad else done(), slots)
        quota = conduct.quota("n1")
        assert quota is None or 1 <= quota <= slots


def test_a_death_counts_once_and_not_at_all_when_a_suspect_was_aboard():
    died = Expired(work_id="w", attempt=1, at=NOW, reason=ExpiryReason.DIED, counted=False)
    assert due(conduct_after([died] * 50), {}) == []

    suspect = running()._replace(attempts=(*running().attempts, running().attempts[0]._replace(number=0, died=True)))
    later = [died.model_copy(update={"at": NOW + timedelta(seconds=20 * number)}) for number in range(10)]
    assert due(conduct_after(later, suspect), {}, later[-1].at) == []
    assert due(conduct_after(later), {}, later[-1].at) != []


def test_a_standstill_counts_once_however_many_leases_it_ended():
    lost = Expired(work_id="w", attempt=1, at=NOW, reason=ExpiryReason.LEASE)
    assert due(conduct_after([lost] * 60), {}) == []

    later = [lost.model_copy(update={"at": NOW + timedelta(seconds=20 * number)}) for number in range(4)]
    assert due(conduct_after(later), {}, later[-1].at) != []


async def test_a_node_that_fails_everything_is_blacklisted_told_and_survives_a_restart(house: House, bus: Bus):
    told: list[BlacklistEntry] = []

    async def hear(entry: BlacklistEntry) -> None:
        told.append(entry)

    await bus.subscribe(BLACKLIST, hear)
    node = Node(house, bus, "n1")
    async with house.marshaling() as before:
        await node.open(slots=1)
        for number in range(1, 5):
            await submit(before, max_attempts=1)
            await node.fail(await node.takes(number), code="engine_error")
        await house.pass_time(2)
        assert [(entry.node_id, entry.listed, entry.by) for entry in told] == [("n1", True, "rate")]

    async with house.marshaling() as after:
        (entry,) = (await after.blacklisting.entries()).entries
        assert (entry.listed, entry.until) == (True, told[0].until)


async def test_a_node_on_the_blacklist_gets_nothing_as_long_as_there_is_another(
    house: House, bus: Bus, queue: Instance, node: Node
):
    other = Node(house, bus, "n2")
    await other.open(slots=1)
    await queue.blacklisting.add("n1", BlacklistNode(reason="noisy"))

    await submit(queue)
    second = await submit(queue)
    await other.takes()
    await house.pass_time(1)
    told = await queue.explanations.explain(WorkLookup(work_id=second))

    assert node.taken == []
    assert {each.node_id: each.excluded_by[0].clause for each in told.nodes} == {"n1": "blacklist", "n2": "slots"}


async def test_when_all_are_on_the_blacklist_the_least_bad_is_used_and_the_attempt_says_so(queue: Instance, node: Node):
    await queue.blacklisting.add("n1", BlacklistNode(reason="noisy"))
    work_id = await submit(queue)
    await node.takes()

    (attempt,) = (await view_of(queue, work_id)).attempts
    assert "the least bad" in str(attempt.despite)


async def test_one_taken_off_the_blacklist_begins_with_one_attempt_at_a_time(house: House, queue: Instance, node: Node):
    await queue.blacklisting.add("n1", BlacklistNode())
    (entry,) = (await queue.blacklisting.remove("n1")).entries
    for _ in range(3):
        await submit(queue)
    given = await node.takes()
    await house.pass_time(1)
    assert (entry.listed, len(node.taken)) == (False, 1)

    await node.complete(given)
    await node.takes(3)


async def test_of_one_node_is_told_what_is_listed_of_it_alone(queue: Instance):
    await queue.blacklisting.add("n1", BlacklistNode(reason="fan"))
    await queue.blacklisting.add("n2", BlacklistNode(reason="dust"))

    assert [each.reason for each in (await queue.blacklisting.of_node("n2")).entries] == ["dust"]
    with pytest.raises(NotFound):
        await queue.blacklisting.of_node("n3")


async def test_one_that_is_not_on_the_blacklist_cannot_be_taken_off(queue: Instance):
    with pytest.raises(NotFound):
        await queue.blacklisting.remove("n1")


async def test_a_term_set_by_hand_ends(house: House, queue: Instance, node: Node):
    await queue.blacklisting.add("n1", BlacklistNode(seconds=5))
    await house.pass_time(7)

    (entry,) = (await queue.blacklisting.entries()).entries
    assert (entry.listed, entry.by) == (False, "term")


def test_trouble_shows_before_the_blacklist_does():
    conduct = conduct_after([*[failed()] * 8, *[done()] * 5])

    assert due(conduct, {}) == []
    assert conduct.trouble("n1") == int(10 * wilson_lower(8, 13)) > 0
