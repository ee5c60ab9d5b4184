"""The life of a reservation."""

from dataclasses import replace

import pytest

from libs.common.contracts.gpu_orchestrator import ReservationState
from libs.common.errors import Conflict, Forbidden
from services.gpu_orchestrator.machine import Held, Holder, after_boot, committed, looked_at, released, renewed
from services.gpu_orchestrator.model import RAM
from tests.nodes import AT

HELD = Held(
    reservation_id="r1",
    token=7,
    state=ReservationState.HELD,
    gpu_uuids=("G0", "G1"),
    required_mb=1000,
    ram_mb=50,
    owner="o",
    purpose="p",
    timeout_seconds=300,
    deadline=300,
    machine_boot="b",
    reserved_at=AT,
)
ENGINE = Holder(pid=42, pid_start=9)
COMMITTED = committed(HELD, 7, ENGINE, 1)


def test_it_claims_each_gpu_and_the_memory():
    assert [(each.device, each.claim_mb) for each in HELD.claims()] == [("G0", 1000), ("G1", 1000), (RAM, 50)]


def test_one_that_nobody_commits_expires_at_its_deadline():
    assert looked_at(HELD, alive=None, now=299, at=AT) is HELD
    assert looked_at(HELD, alive=None, now=300, at=AT).state == ReservationState.EXPIRED


def test_renewing_counts_from_now():
    assert renewed(HELD, 7, None, 200).deadline == 500
    assert renewed(HELD, 7, 10, 200).deadline == 210


def test_a_committed_one_never_expires_and_ends_with_its_process():
    assert looked_at(COMMITTED, alive=True, now=1e9, at=AT) is COMMITTED
    assert looked_at(COMMITTED, alive=None, now=1e9, at=AT) is COMMITTED
    assert looked_at(COMMITTED, alive=False, now=2, at=AT).state == ReservationState.ENDED


def test_committing_twice_by_the_same_process_is_one_commit_and_by_another_a_conflict():
    assert committed(COMMITTED, 7, ENGINE, 2) is COMMITTED
    with pytest.raises(Conflict):
        committed(COMMITTED, 7, replace(ENGINE, pid_start=10), 2)


def test_what_is_too_late_is_refused_even_before_anybody_looked():
    with pytest.raises(Conflict):
        committed(HELD, 7, ENGINE, 300)
    with pytest.raises(Conflict):
        renewed(HELD, 7, None, 300)


def test_a_foreign_token_changes_nothing():
    for attempt in (
        lambda: renewed(HELD, 8, None, 1),
        lambda: committed(HELD, 8, ENGINE, 1),
        lambda: released(HELD, 8, AT),
    ):
        with pytest.raises(Forbidden):
            attempt()


def test_releasing_twice_is_one_release():
    once = released(COMMITTED, 7, AT)

    assert (once.state, released(once, None, AT)) == (ReservationState.RELEASED, once)


def test_nothing_outlives_a_boot_of_the_machine():
    assert after_boot(COMMITTED, "b", AT) is COMMITTED
    assert after_boot(COMMITTED, "c", AT).state == ReservationState.ENDED
